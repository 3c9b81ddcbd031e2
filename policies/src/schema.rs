//! JSON Schemas of every kind, for editors (draft 2020-12).
//!
//! They are written from the same tables that the reader checks documents against, so they cannot disagree about a key.
//! What is known but not built is left out, so that an editor marks it as the reader does.

use serde_json::{Map, Value, json};

use crate::document::shape::{Form, Need, Shape};
use crate::document::{Kind, shapes};

/// One schema for each kind.
pub fn all() -> Vec<(Kind, Value)> {
    Kind::ALL.into_iter().map(|kind| (kind, document(kind))).collect()
}

fn document(kind: Kind) -> Value {
    let mut schema = Map::new();
    schema.insert("$schema".into(), "https://json-schema.org/draft/2020-12/schema".into());
    schema.insert("$id".into(), format!("https://equerry.dev/schema/{}.json", kind.as_str().to_lowercase()).into());
    schema.insert("title".into(), kind.as_str().into());
    if let Value::Object(rest) = object(shapes::of(kind)) {
        schema.extend(rest);
    }
    let mut schema = Value::Object(schema);
    schema["properties"]["apiVersion"]["enum"] = json!([kind.api_version()]);
    schema["properties"]["kind"]["enum"] = json!([kind.as_str()]);
    schema
}

fn object(shape: &Shape) -> Value {
    let shown = || shape.fields.iter().filter(|field| field.need != Need::Unbuilt);
    let properties: Map<String, Value> = shown()
        .map(|field| {
            let mut value = form(&field.form);
            if let Value::Object(value) = &mut value {
                value.insert("description".into(), field.about.into());
            }
            (field.name.to_owned(), value)
        })
        .collect();
    let required: Vec<&str> = shown().filter(|field| field.need == Need::Must).map(|field| field.name).collect();
    let mut schema = json!({ "description": shape.about, "type": "object", "properties": properties });
    if !required.is_empty() {
        schema["required"] = json!(required);
    }
    schema["additionalProperties"] = json!(false);
    schema
}

fn form(form_: &Form) -> Value {
    match form_ {
        Form::Anything => json!({}),
        Form::Bool => json!({ "type": "boolean" }),
        Form::Whole(min, max) => json!({ "type": "integer", "minimum": min, "maximum": max }),
        Form::Bytes(min, max) => {
            let number = json!({ "type": "integer", "minimum": min, "maximum": max });
            json!({ "oneOf": [{ "type": "string", "pattern": "^[0-9]+(k|M|G|Ki|Mi|Gi)?$" }, number] })
        }
        Form::Text(text) => match text.pattern {
            Some(pattern) => json!({ "type": "string", "pattern": pattern }),
            None => json!({ "type": "string" }),
        },
        Form::Choice(choice) => {
            let mut schema = json!({ "type": "string", "enum": choice.built });
            if let Some(default) = choice.default {
                schema["default"] = default.into();
            }
            schema
        }
        Form::List(of, min, max) => json!({ "type": "array", "items": form(of), "minItems": min, "maxItems": max }),
        Form::Object(shape) => object(shape),
        Form::Map(keys, values) => {
            let mut schema = json!({ "type": "object", "additionalProperties": form(values) });
            if let Some(pattern) = keys.pattern {
                schema["propertyNames"] = json!({ "pattern": pattern });
            }
            schema
        }
        Form::PortText => {
            let port = json!({ "type": "integer", "minimum": 1, "maximum": 65535 });
            json!({ "oneOf": [{ "type": "string", "pattern": "^[1-9][0-9]{0,4}$" }, port] })
        }
        Form::TargetPort => json!({ "type": "integer", "minimum": 1, "maximum": 65535 }),
        Form::KeySet => {
            let set = json!({ "type": "object", "required": ["keys"], "properties": { "keys": { "type": "array", "minItems": 1 } } });
            json!({ "oneOf": [{ "type": "string" }, set] })
        }
    }
}
