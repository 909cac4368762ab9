//! `openapi.yaml` as far as the tests read it: references and the JSON Schema keywords it uses.
//! Checking a value leaves marks at the places it visits, so that documented places which no value
//! ever visits can be named.

use std::collections::BTreeSet;

use regex::Regex;
use serde_json::{Map, Value};

/// Places of the document: properties, alternatives, values of enumerations.
pub(super) type Marks = BTreeSet<String>;

/// The document.
pub(super) struct Document(Value);

/// A schema and its place.
#[derive(Clone)]
pub(super) struct Schema<'a> {
    at: String,
    fields: &'a Map<String, Value>,
}

impl<'a> Schema<'a> {
    /// A schema at a place.
    pub(super) fn new(at: &str, schema: &'a Value) -> Self {
        let fields = schema.as_object();
        Self {
            at: at.to_owned(),
            fields: fields.unwrap_or_else(|| panic!("{at} is no schema: {schema}")),
        }
    }

    /// The argument of a keyword.
    pub(super) fn get(&self, keyword: &str) -> Option<&'a Value> {
        self.fields.get(keyword)
    }

    /// The schemas under a keyword that lists them.
    pub(super) fn list(&self, keyword: &str) -> Vec<Self> {
        let list = self.get(keyword).and_then(Value::as_array);
        let list = list.into_iter().flatten().enumerate();
        list.map(|(i, schema)| Self::new(&format!("{}/{keyword}/{i}", self.at), schema))
            .collect()
    }

    /// The properties, each with its name.
    pub(super) fn properties(&self) -> Vec<(&'a str, Self)> {
        let properties = self.get("properties").and_then(Value::as_object);
        let properties = properties.into_iter().flatten();
        properties
            .map(|(name, schema)| {
                (
                    name.as_str(),
                    Self::new(&format!("{}.{name}", self.at), schema),
                )
            })
            .collect()
    }

    /// The schema under a keyword that has one.
    pub(super) fn inner(&self, keyword: &str) -> Option<Self> {
        let schema = self.get(keyword).filter(|schema| schema.is_object())?;
        Some(Self::new(&format!("{}/{keyword}", self.at), schema))
    }

    /// The names under `required`.
    pub(super) fn required(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        let names = self.get("required").and_then(Value::as_array);
        names.into_iter().flatten().filter_map(Value::as_str)
    }

    fn types(&self) -> Vec<&'a str> {
        match self.get("type") {
            Some(Value::Array(types)) => types.iter().filter_map(Value::as_str).collect(),
            other => other.and_then(Value::as_str).into_iter().collect(),
        }
    }
}

impl Document {
    /// Reads the document at the root of the repository.
    pub(super) fn load() -> Self {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../openapi.yaml");
        let text = std::fs::read_to_string(path).expect("openapi.yaml at the root");
        // YAML's own type refuses duplicate keys.
        let yaml: yaml_serde::Value = yaml_serde::from_str(&text).expect("the document is YAML");
        Self(serde_json::to_value(yaml).expect("its keys are strings"))
    }

    /// The value at a JSON pointer.
    pub(super) fn at(&self, pointer: &str) -> &Value {
        let value = self.0.pointer(pointer);
        value.unwrap_or_else(|| panic!("openapi.yaml has no {pointer}"))
    }

    /// Follows a reference, if the value is one.
    pub(super) fn resolve<'a>(&'a self, value: &'a Value) -> &'a Value {
        match value.get("$ref").and_then(Value::as_str) {
            Some(target) => self.at(target.trim_start_matches('#')),
            None => value,
        }
    }

    /// A schema of `components`.
    pub(super) fn schema(&self, name: &str) -> Schema<'_> {
        Schema::new(name, self.at(&format!("/components/schemas/{name}")))
    }

    /// The schema a reference stands for; none where there is no reference.
    pub(super) fn target(&self, schema: &Schema) -> Option<Schema<'_>> {
        let target = schema.get("$ref")?.as_str()?;
        let name = target.strip_prefix("#/components/schemas/");
        Some(self.schema(name.unwrap_or_else(|| panic!("{target} is no schema"))))
    }

    /// Whether a value is valid.
    pub(super) fn accepts(&self, schema: &Schema, value: &Value) -> bool {
        self.check(schema, value, &mut Marks::new()).is_ok()
    }

    /// Checks a value; says where it is not valid.
    pub(super) fn check(
        &self,
        schema: &Schema,
        value: &Value,
        marks: &mut Marks,
    ) -> Result<(), String> {
        for (keyword, argument) in schema.fields {
            let holds = match keyword.as_str() {
                "$ref" => {
                    let target = self.target(schema).expect("a reference");
                    marks.insert(target.at.clone());
                    self.check(&target, value, marks)?;
                    true
                }
                "type" => mark_type(schema, value, marks),
                "enum" => mark_enum(schema, value, marks),
                "const" => argument == value,
                "oneOf" | "anyOf" | "allOf" => self.check_branches(schema, keyword, value, marks),
                "properties" | "required" | "additionalProperties" | "propertyNames" => {
                    self.check_object(schema, keyword, value, marks)?;
                    true
                }
                "items" => {
                    let items = schema.inner(keyword).expect("a schema");
                    for item in value.as_array().into_iter().flatten() {
                        self.check(&items, item, marks)?;
                    }
                    true
                }
                "description" | "default" | "format" => true,
                _ if keyword.starts_with("x-") => true,
                _ => within(keyword, argument, value),
            };
            if !holds {
                return Err(format!(
                    "{}: {keyword} {argument} refuses {value}",
                    schema.at
                ));
            }
        }
        Ok(())
    }

    fn check_branches(
        &self,
        schema: &Schema,
        keyword: &str,
        value: &Value,
        marks: &mut Marks,
    ) -> bool {
        let branches = schema.list(keyword);
        let mut num_valid = 0;
        for branch in &branches {
            let mut own = Marks::from([branch.at.clone()]);
            if self.check(branch, value, &mut own).is_ok() {
                num_valid += 1;
                marks.append(&mut own);
            }
        }
        match keyword {
            "oneOf" => num_valid == 1,
            "anyOf" => num_valid > 0,
            _ => num_valid == branches.len(),
        }
    }

    fn check_object(
        &self,
        schema: &Schema,
        keyword: &str,
        value: &Value,
        marks: &mut Marks,
    ) -> Result<(), String> {
        let Some(object) = value.as_object() else {
            return Ok(());
        };
        let at = &schema.at;
        let known = schema.properties();
        let others = object
            .iter()
            .filter(|(name, _)| known.iter().all(|(k, _)| k != name));
        match keyword {
            "properties" => {
                for (name, property) in &known {
                    if let Some(value) = object.get(*name) {
                        marks.insert(property.at.clone());
                        self.check(property, value, marks)?;
                    }
                }
            }
            "required" => {
                if let Some(name) = schema.required().find(|name| !object.contains_key(*name)) {
                    return Err(format!("{at}: {name} is missing in {value}"));
                }
            }
            "propertyNames" => {
                let names = schema.inner(keyword).expect("a schema");
                for name in object.keys() {
                    self.check(&names, &Value::from(name.as_str()), marks)?;
                }
            }
            _ => match schema.inner(keyword) {
                Some(inner) => {
                    for (_, value) in others {
                        self.check(&inner, value, marks)?;
                    }
                }
                None => {
                    let allows = schema.get(keyword) == Some(&Value::Bool(true));
                    if let (false, Some((name, _))) = (allows, others.into_iter().next()) {
                        return Err(format!("{at}: {name} is not documented"));
                    }
                }
            },
        }
        Ok(())
    }

    /// Adds every mark that values can leave in a schema.
    pub(super) fn expect(&self, schema: &Schema, marks: &mut Marks) {
        let at = &schema.at;
        marks.extend(schema.types().iter().map(|kind| format!("{at}: {kind}")));
        let values = schema.get("enum").and_then(Value::as_array);
        marks.extend(values.into_iter().flatten().map(|v| format!("{at} = {v}")));
        if let Some(target) = self.target(schema)
            && marks.insert(target.at.clone())
        {
            self.expect(&target, marks);
        }
        for branch in ["oneOf", "anyOf", "allOf"]
            .iter()
            .flat_map(|k| schema.list(k))
        {
            marks.insert(branch.at.clone());
            self.expect(&branch, marks);
        }
        for (_, property) in schema.properties() {
            marks.insert(property.at.clone());
            self.expect(&property, marks);
        }
        for inner in ["items", "additionalProperties"]
            .iter()
            .filter_map(|k| schema.inner(k))
        {
            self.expect(&inner, marks);
        }
    }
}

fn mark_type(schema: &Schema, value: &Value, marks: &mut Marks) -> bool {
    let is = |kind: &str| match kind {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        "number" => value.is_number(),
        "integer" => value.as_f64().is_some_and(|number| number.fract() == 0.0),
        _ => panic!("{}: unknown type {kind}", schema.at),
    };
    let kind = schema.types().into_iter().find(|kind| is(kind));
    marks.extend(kind.map(|kind| format!("{}: {kind}", schema.at)));
    kind.is_some()
}

fn mark_enum(schema: &Schema, value: &Value, marks: &mut Marks) -> bool {
    let values = schema.get("enum").and_then(Value::as_array);
    let is_known = values.is_some_and(|values| values.contains(value));
    marks.extend(is_known.then(|| format!("{} = {value}", schema.at)));
    is_known
}

/// Bounds on numbers and lengths. As JSON Schema has it, a bound says nothing about other types.
fn within(keyword: &str, argument: &Value, value: &Value) -> bool {
    let number = value.as_f64();
    let text = value.as_str();
    let measure = match keyword {
        "minimum" | "maximum" | "exclusiveMinimum" => number,
        "minLength" | "maxLength" => text.map(|text| text.chars().count() as f64),
        "minItems" | "maxItems" => value.as_array().map(|items| items.len() as f64),
        "maxProperties" => value.as_object().map(|fields| fields.len() as f64),
        "pattern" => {
            let pattern = Regex::new(argument.as_str().expect("a pattern")).expect("a pattern");
            return text.is_none_or(|text| pattern.is_match(text));
        }
        _ => panic!("openapi.yaml uses {keyword}, which this test does not know"),
    };
    let bound = argument.as_f64().expect("bounds are numbers");
    measure.is_none_or(|measure| match keyword {
        "exclusiveMinimum" => measure > bound,
        _ if keyword.starts_with("min") => measure >= bound,
        _ => measure <= bound,
    })
}
