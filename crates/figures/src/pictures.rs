//! What each picture shows.

use std::fmt::Write;

use crate::measure::{Levels, Mode, Product, median};
use crate::svg::{HEATS, Picture, Plot, powers};
use crate::{KINDS, Study};

const WIDTH: f64 = 820.0;

/// Tokens and features that the map of activations has room for.
const MAP_TOKENS: usize = 48;
const MAP_FEATURES: usize = 192;

/// One side of a product, by granularity.
type LevelsOf = fn(&Product) -> &[Levels; 3];

/// What shares a scale, drawn without any numbers of a model.
pub fn granularities() -> String {
    let mut picture = Picture::new(
        WIDTH,
        212.0,
        "What shares a scale",
        "Four matrices whose cells have one colour where they share a scale: all of it, each row, and \
         each row's groups of 128 and of 32.",
    );
    picture.text(16.0, 26.0, "h", "Numbers of one colour share a scale");
    let forms = [
        ("per tensor", "1 scale", 1, 32),
        ("per row", "+ 0.001 bytes per number", 8, 32),
        ("per row and 128", "+ 0.03 bytes per number", 8, 8),
        ("per row and 32", "+ 0.125 bytes per number", 8, 2),
    ];
    for (i, (name, cost, rows, run)) in forms.into_iter().enumerate() {
        let left = 16.0 + 201.0 * i as f64;
        let heat = |cell: usize| {
            let (row, column) = (cell / 32 * rows / 8, cell % 32 / run);
            1 + (3 * row + column) % (HEATS - 2)
        };
        let heats: Vec<usize> = (0..8 * 32).map(heat).collect();
        picture.map([left, 44.0, 185.0, 112.0], 32, &heats);
        picture.text(left, 178.0, "h", name);
        picture.text(left, 196.0, "t", cost);
    }
    picture.finish()
}

impl Study {
    /// Every picture of this model: what it is called and the file.
    pub fn pictures(&self) -> [(&'static str, String); 4] {
        [
            ("levels", self.levels()),
            ("map", self.map()),
            ("outliers", self.outliers()),
            ("errors", self.errors()),
        ]
    }

    /// On which integers weights and activations lie.
    fn levels(&self) -> String {
        let title = format!("{}: where 8-bit integers are used", self.name);
        let mut picture = Picture::new(
            WIDTH,
            356.0,
            &title,
            "Shares of numbers by the integer they become, weights left and activations right. With \
             finer scales more numbers become large integers.",
        );
        picture.text(16.0, 26.0, "h", &title);
        let sides: [(&str, LevelsOf); 2] = [
            ("share of weights", |product| &product.weight_levels),
            ("share of activations", |product| &product.input_levels),
        ];
        for (side, (label, levels)) in sides.into_iter().enumerate() {
            let plot = Plot {
                at: [62.0 + 410.0 * side as f64, 84.0, 332.0, 222.0],
                x: (-127.0, 127.0),
                y: (-5.0, 0.0),
                is_log: true,
            };
            let ticks = [-127, -64, 0, 64, 127].map(|q| (f64::from(q), q.to_string()));
            plot.axes(
                &mut picture,
                ["integer", label],
                &ticks,
                &powers(-5, 0, percent),
            );
            for series in 0..3 {
                let shares: Vec<_> = self.total(levels, series).shares().collect();
                plot.line(&mut picture, series, &shares);
            }
        }
        let names = ["a scale per row", "per row and 128", "per row and 32"];
        picture.legend(62.0, 54.0, &names.map(str::to_owned));
        picture.finish()
    }

    /// The activations with the largest outliers that last: tokens by features, and the largest of each feature.
    fn map(&self) -> String {
        let (index, product) = self.worst();
        let title = format!(
            "{}: inputs of one matrix, layer {}, {}",
            self.name,
            index / KINDS.len(),
            KINDS[index % KINDS.len()]
        );
        let mut picture = Picture::new(
            WIDTH,
            452.0,
            &title,
            "A map of magnitudes, tokens downwards and features to the right. A few features are far \
             larger than the others in many tokens.",
        );
        picture.text(16.0, 26.0, "h", &title);
        let inputs = &product.inputs;
        let columns = inputs.columns.min(MAP_FEATURES);
        let rows = inputs.rows.min(MAP_TOKENS);
        let median = median(inputs.data.iter().map(|x| x.abs()).collect());
        let heat = |x: f32| {
            let steps = (x / median).log2().floor() as i64;
            usize::try_from(steps).unwrap_or(0).min(HEATS - 1)
        };
        let heats: Vec<usize> = inputs.data[..rows * inputs.columns]
            .chunks(inputs.columns)
            .flat_map(|row| binned(row, columns))
            .map(heat)
            .collect();
        let frame = [62.0, 84.0, 742.0, 144.0];
        picture.map(frame, columns, &heats);
        picture.frame(frame);
        picture.text(54.0, 94.0, "t e", "first");
        picture.text(54.0, 226.0, "t e", &format!("{rows}th"));
        picture.text(54.0, 160.0, "t e", "token");
        legend_of_heats(&mut picture, 62.0, 44.0);
        let channels = binned(&product.channels(), columns);
        let values: Vec<(f64, f64)> = channels
            .iter()
            .enumerate()
            .map(|(i, x)| (i as f64, f64::from(x / median)))
            .collect();
        let plot = Plot {
            at: [62.0, 264.0, 742.0, 138.0],
            x: (-0.5, columns as f64 - 0.5),
            y: (0.0, 5.0),
            is_log: true,
        };
        let ticks = (0..=4).map(|quarter| {
            let feature = inputs.columns * quarter / 4;
            let place = columns as f64 * quarter as f64 / 4.0 - 0.5;
            (place, feature.to_string())
        });
        plot.axes(
            &mut picture,
            [
                "feature",
                "largest magnitude of a feature, as a multiple of the median of all numbers",
            ],
            &ticks.collect::<Vec<_>>(),
            &powers(0, 5, whole),
        );
        plot.line(&mut picture, 4, &values);
        picture.finish()
    }

    /// How far the largest feature stands out, by depth.
    fn outliers(&self) -> String {
        let title = format!("{}: outliers by depth", self.name);
        let mut picture = Picture::new(
            WIDTH,
            356.0,
            &title,
            "The largest feature of each matrix's inputs as a multiple of the median feature.",
        );
        picture.text(16.0, 26.0, "h", &title);
        let plot = self.plot_by_depth([62.0, 84.0, 742.0, 222.0], (0.0, 4.0), true);
        plot.axes(
            &mut picture,
            ["layer", "largest feature ÷ median feature"],
            &self.layer_ticks(),
            &powers(0, 4, whole),
        );
        for kind in 0..KINDS.len() {
            plot.line(
                &mut picture,
                kind,
                &self.by_depth(kind, Product::outlier_ratio),
            );
        }
        picture.legend(62.0, 54.0, &KINDS.map(str::to_owned));
        picture.finish()
    }

    /// The error of each product in each mode.
    fn errors(&self) -> String {
        let title = format!("{}: error of each matrix product by mode", self.name);
        let mut picture = Picture::new(
            WIDTH,
            640.0,
            &title,
            "Signal-to-noise ratio in decibels by layer, one plot for each matrix of a layer, one line \
             for each mode. Blocks of 32 are best, one scale per token is worst.",
        );
        picture.text(16.0, 26.0, "h", &title);
        for (kind, name) in KINDS.into_iter().enumerate() {
            let (column, row) = (kind % 2, kind / 2);
            let at = [
                46.0 + 402.0 * column as f64,
                92.0 + 282.0 * row as f64,
                356.0,
                212.0,
            ];
            let plot = self.plot_by_depth(at, (10.0, 60.0), false);
            let ticks = (1..=6).map(|i| (f64::from(10 * i), (10 * i).to_string()));
            plot.axes(
                &mut picture,
                ["layer", &format!("{name}, dB")],
                &self.layer_ticks(),
                &ticks.collect::<Vec<_>>(),
            );
            for mode in 0..Mode::ALL.len() {
                plot.line(
                    &mut picture,
                    mode,
                    &self.by_depth(kind, |product| product.snr_db[mode]),
                );
            }
        }
        picture.legend(46.0, 54.0, &Mode::ALL.map(|mode| mode.name().to_owned()));
        picture.finish()
    }

    /// The figures behind the pictures, as tables.
    ///
    /// # Panics
    /// Never: a string takes any text.
    pub fn tables(&self) -> String {
        let mut text = format!("{}, {} tokens\n\n", self.name, self.num_tokens);
        let mut line = |line: String| writeln!(text, "{line}").expect("a string takes any text");
        line(format!(
            "| matrix | {} | outliers, median and largest |",
            Mode::ALL.map(Mode::name).join(" | ")
        ));
        line("|---|---|---|---|---|---|".to_owned());
        for (kind, name) in KINDS.into_iter().enumerate() {
            let means = Mode::ALL.iter().enumerate().map(|(mode, _)| {
                let values = self.by_depth(kind, |product| product.snr_db[mode]);
                let sum: f64 = values.iter().map(|(_, snr)| snr).sum();
                format!("{:.1}", sum / values.len() as f64)
            });
            let means: Vec<String> = means.collect();
            let mut ratios: Vec<f64> = self
                .by_depth(kind, Product::outlier_ratio)
                .into_iter()
                .map(|(_, ratio)| ratio)
                .collect();
            ratios.sort_by(f64::total_cmp);
            line(format!(
                "| {name} | {} | {:.0}, {:.0} |",
                means.join(" | "),
                ratios[ratios.len() / 2],
                ratios[ratios.len() - 1]
            ));
        }
        for (i, name) in ["per row", "per row and 128", "per row and 32"]
            .iter()
            .enumerate()
        {
            let small = |levels| 100.0 * self.total(levels, i).small();
            let (weights, inputs) = (small(|p| &p.weight_levels), small(|p| &p.input_levels));
            line(format!(
                "-1, 0 or 1 with a scale {name}: {weights:.1} % of weights, {inputs:.1} % of activations"
            ));
        }
        let grouped = self.products.iter().filter(|product| product.is_grouped);
        line(format!(
            "the guard gives groups to {} of {} matrices",
            grouped.count(),
            self.products.len()
        ));
        text
    }

    /// Of all matrices together, with one of the granularities.
    fn total(&self, levels: LevelsOf, granularity: usize) -> Levels {
        let mut total = Levels::default();
        let products = self.products.iter();
        products.for_each(|product| total.add(&levels(product)[granularity]));
        total
    }

    /// The product whose inputs have the largest outlier that lasts, and where it is.
    fn worst(&self) -> (usize, &Product) {
        let ratio = |(_, product): &(usize, &Product)| product.lasting_outlier_ratio();
        let products = self.products.iter().enumerate();
        products
            .max_by(|a, b| ratio(a).total_cmp(&ratio(b)))
            .expect("a study has products")
    }

    /// A figure of one kind of matrix in every layer.
    fn by_depth(&self, kind: usize, figure: impl Fn(&Product) -> f64) -> Vec<(f64, f64)> {
        let products = self.products.iter().skip(kind).step_by(KINDS.len());
        products
            .enumerate()
            .map(|(layer, product)| (layer as f64, figure(product)))
            .collect()
    }

    fn plot_by_depth(&self, at: [f64; 4], y: (f64, f64), is_log: bool) -> Plot {
        let layers = self.products.len() / KINDS.len();
        Plot {
            at,
            x: (0.0, layers as f64 - 1.0),
            y,
            is_log,
        }
    }

    fn layer_ticks(&self) -> Vec<(f64, String)> {
        let layers = self.products.len() / KINDS.len();
        let step = layers.div_ceil(8).max(1);
        let ticks = (0..layers).step_by(step);
        ticks
            .map(|layer| (layer as f64, layer.to_string()))
            .collect()
    }
}

/// A row drawn in `columns`: the largest magnitude of what falls into each.
fn binned(row: &[f32], columns: usize) -> Vec<f32> {
    let largest = |values: &[f32]| values.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    let edge = |column: usize| column * row.len() / columns;
    (0..columns)
        .map(|column| largest(&row[edge(column)..edge(column + 1)]))
        .collect()
}

/// What the colours of a map mean.
fn legend_of_heats(picture: &mut Picture, x: f64, y: f64) {
    picture.text(x, y + 11.0, "t", "magnitude as a multiple of the median:");
    for heat in 0..HEATS {
        let left = x + 220.0 + 75.0 * heat as f64;
        picture.cell([left, y, 22.0, 14.0], heat);
        let least = 1 << heat;
        let label = match heat {
            0 => "below 2".to_owned(),
            _ if heat == HEATS - 1 => format!("from {least}"),
            _ => format!("{least} to {}", 2 * least),
        };
        picture.text(left + 27.0, y + 11.0, "t", &label);
    }
}

/// A power of ten.
fn whole(power: i32) -> String {
    format!("{:.0}", 10f64.powi(power))
}

/// A power of ten as a percentage.
fn percent(power: i32) -> String {
    let digits = usize::try_from(-power - 2).unwrap_or(0);
    format!("{:.digits$} %", 10f64.powi(power + 2))
}
