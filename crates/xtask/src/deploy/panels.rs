//! Panels of a Grafana board as plain data, and their JSON. A panel is drawn from expressions; its
//! place follows from its row and width.

use anyhow::{Result, bail};
use serde_json::{Value, json};

/// Columns of a board.
const COLUMNS: u64 = 24;

/// A line of a panel.
pub struct Target {
    /// The expression.
    pub expr: String,
    /// Name of its series; `{{label}}` is replaced.
    pub legend: String,
}

/// How a panel is drawn.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// One number.
    Stat,
    /// Lines over time.
    Lines,
    /// Lines over time, stacked.
    Stacked,
    /// A histogram over time.
    Heatmap,
    /// The alerts that fire.
    Alerts,
}

/// One panel.
pub struct Panel {
    /// What it shows.
    pub title: &'static str,
    /// What to do when it moves.
    pub advice: String,
    /// How it is drawn.
    pub form: Form,
    /// Grafana's name of the unit.
    pub unit: &'static str,
    /// Columns it takes.
    pub width: u64,
    /// What is drawn.
    pub targets: Vec<Target>,
    /// A value from which a number is shown in red.
    pub limit: Option<f64>,
}

/// Panels under a common title.
pub struct Row {
    /// Title.
    pub title: &'static str,
    /// Panels, from the left.
    pub panels: Vec<Panel>,
}

/// A board.
pub struct Board {
    /// Its stable name in addresses.
    pub uid: &'static str,
    /// Title.
    pub title: &'static str,
    /// What it answers.
    pub description: &'static str,
    /// Rows from the top.
    pub rows: Vec<Row>,
}

impl Board {
    /// The file that Grafana loads.
    pub fn json(&self) -> Result<Value> {
        let mut panels = Vec::new();
        let (mut id, mut y) = (0, 0);
        for row in &self.rows {
            id += 1;
            panels.push(json!({
                "id": id, "type": "row", "title": row.title, "collapsed": false, "panels": [],
                "gridPos": {"x": 0, "y": y, "w": COLUMNS, "h": 1},
            }));
            y += 1;
            let (mut x, mut height) = (0, 0);
            for panel in &row.panels {
                if panel.width == 0 || panel.width > COLUMNS {
                    bail!("{} is {} columns wide", panel.title, panel.width);
                }
                if x + panel.width > COLUMNS {
                    (x, y, height) = (0, y + height, 0);
                }
                id += 1;
                panels.push(panel.json(id, x, y));
                x += panel.width;
                height = height.max(panel.height());
            }
            y += height;
        }
        Ok(json!({
            "uid": self.uid,
            "title": self.title,
            "description": self.description,
            "tags": ["octet"],
            "schemaVersion": 39,
            "version": 1,
            "editable": true,
            "graphTooltip": 1,
            "refresh": "30s",
            "time": {"from": "now-1h", "to": "now"},
            "timezone": "",
            "templating": {"list": variables()},
            "annotations": {"list": [restarts()]},
            "links": [{
                "type": "dashboards", "title": "octet", "tags": ["octet"], "asDropdown": false,
                "includeVars": true, "keepTime": true, "targetBlank": false, "icon": "external link",
            }],
            "panels": panels,
        }))
    }
}

impl Panel {
    fn height(&self) -> u64 {
        match self.form {
            Form::Stat => 4,
            _ => 8,
        }
    }

    fn json(&self, id: u64, x: u64, y: u64) -> Value {
        let targets = self.targets.iter().enumerate().map(|(n, target)| {
            json!({
                "refId": char::from(b'A' + n as u8).to_string(),
                "datasource": datasource(),
                "expr": target.expr,
                "legendFormat": target.legend,
                "format": if self.form == Form::Heatmap { "heatmap" } else { "time_series" },
                "instant": self.form == Form::Stat,
                "range": self.form != Form::Stat,
            })
        });
        let targets: Vec<Value> = targets.collect();
        let mut steps = vec![json!({"color": "green", "value": null})];
        if let Some(limit) = self.limit {
            steps.push(json!({"color": "red", "value": limit}));
        }
        json!({
            "id": id,
            "type": self.kind(),
            "title": self.title,
            "description": self.advice,
            "datasource": datasource(),
            "gridPos": {"x": x, "y": y, "w": self.width, "h": self.height()},
            "fieldConfig": {
                "defaults": {
                    "unit": self.unit,
                    "custom": self.custom(),
                    "thresholds": {"mode": "absolute", "steps": steps},
                },
                "overrides": [],
            },
            "options": self.options(),
            "targets": targets,
        })
    }

    fn kind(&self) -> &'static str {
        match self.form {
            Form::Stat => "stat",
            Form::Lines | Form::Stacked => "timeseries",
            Form::Heatmap => "heatmap",
            Form::Alerts => "alertlist",
        }
    }

    fn custom(&self) -> Value {
        match self.form {
            Form::Stacked => json!({
                "fillOpacity": 30, "lineWidth": 1, "showPoints": "never",
                "stacking": {"mode": "normal", "group": "A"},
            }),
            Form::Lines => json!({
                "fillOpacity": 0, "lineWidth": 1, "showPoints": "never",
                "thresholdsStyle": {"mode": if self.limit.is_some() { "line" } else { "off" }},
            }),
            Form::Stat | Form::Heatmap | Form::Alerts => json!({}),
        }
    }

    fn options(&self) -> Value {
        match self.form {
            Form::Stat => json!({
                "colorMode": "value", "graphMode": "none", "textMode": "auto",
                "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": false},
            }),
            Form::Lines | Form::Stacked => json!({
                "legend": {"displayMode": "list", "placement": "bottom", "showLegend": true},
                "tooltip": {"mode": "multi", "sort": "desc"},
            }),
            Form::Heatmap => json!({
                "calculate": false,
                "yAxis": {"unit": self.unit},
                "color": {"mode": "scheme", "scheme": "Viridis", "steps": 64},
                "cellGap": 1,
                "tooltip": {"mode": "single", "yHistogram": false},
            }),
            Form::Alerts => json!({
                "alertName": "", "dashboardAlerts": false, "groupMode": "default", "maxItems": 20,
                "sortOrder": 1, "stateFilter": {"firing": true, "pending": true, "error": true},
            }),
        }
    }
}

fn datasource() -> Value {
    json!({"type": "prometheus", "uid": "${datasource}"})
}

fn variables() -> Vec<Value> {
    let query = |name: &str, text: &str| {
        json!({
            "name": name, "type": "query", "label": name, "datasource": datasource(),
            "query": {"query": text, "refId": name}, "definition": text,
            "includeAll": true, "multi": true, "allValue": ".+", "refresh": 2, "sort": 1,
            "current": {"text": "All", "value": "$__all"},
        })
    };
    vec![
        json!({
            "name": "datasource", "type": "datasource", "label": "data source",
            "query": "prometheus", "current": {}, "refresh": 1, "multi": false,
        }),
        query(
            "model_name",
            "label_values(octet_requests_running, model_name)",
        ),
        query(
            "instance",
            "label_values(octet_requests_running{model_name=~\"$model_name\"}, instance)",
        ),
    ]
}

/// A mark wherever a process began.
fn restarts() -> Value {
    json!({
        "name": "starts", "enable": true, "iconColor": "orange", "datasource": datasource(),
        "expr": "changes(process_start_time_seconds{job=\"octet\",instance=~\"$instance\"}[1m]) > 0",
        "titleFormat": "start of {{instance}}",
    })
}
