//! What stands in a chart.

/// How the points of a series are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Joined.
    Line,
    /// A dot each, of as many as there may be.
    Dots,
    /// Joined, with a mark and a label at each, and with its interval where there is one.
    Marked,
    /// A mark each, of the shape of its colour: few enough that each is something of its own.
    Apart,
    /// Joined, apart from the dots of its colour that it goes through.
    Through,
    /// A thin outline beside a line of its colour.
    Outline,
    /// Joined by a thin line, with a ring at each, beside a marked series of its colour.
    Rings,
    /// A cross at the upper edge for each, wherever its height may be.
    AtTop,
    /// A mark each that tells a verdict without its colour, too.
    Verdict(Mark),
    /// A line across the chart at the height of the first point.
    Level,
    /// Joined, as something to hold the others against.
    Guide,
}

/// What a mark says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    Pass,
    Fail,
    Open,
}

/// One run in a chart.
#[derive(Debug, Clone)]
pub struct Series {
    pub name: String,
    pub form: Form,
    /// Number of its colour, which it shares with what belongs to it.
    pub colour: usize,
    pub points: Vec<(f64, f64)>,
    /// What stands at the points of a marked series.
    pub labels: Vec<String>,
    /// Lower and upper end of the interval of each point, where they have one; of one without, itself twice.
    pub intervals: Vec<(f64, f64)>,
    /// Where on the axis below an arrow from each point of a marked series ends.
    pub arrows: Vec<f64>,
    /// A place on the axis below with the ends of the interval there, by rising places; drawn as an area.
    pub band: Vec<(f64, f64, f64)>,
}

impl Series {
    /// Points and no more.
    pub fn new(
        name: impl Into<String>,
        form: Form,
        colour: usize,
        points: Vec<(f64, f64)>,
    ) -> Self {
        Self {
            name: name.into(),
            form,
            colour,
            points,
            labels: Vec::new(),
            intervals: Vec::new(),
            arrows: Vec::new(),
            band: Vec::new(),
        }
    }
}
