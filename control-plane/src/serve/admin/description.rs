//! The API's description (OpenAPI 3.1): what stands above the routes, and what every route has in common.

use http::StatusCode;
use serde_json::{Value, json};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{ComponentsBuilder, InfoBuilder, OpenApi, OpenApiBuilder};

use super::problem::PROBLEM_JSON;

/// What stands above the routes.
pub(super) fn introduction() -> OpenApi {
    let bearer = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some("The text of STATE-DIR/admin.token, or of `equerry token create admin`"))
        .build();
    let info = InfoBuilder::new().title("Equerry admin API").version(env!("CARGO_PKG_VERSION")).description(Some(
        "Documents, and what the control plane knows. Every error is application/problem+json (RFC 9457).",
    ));
    OpenApiBuilder::new()
        .info(info.build())
        .components(Some(ComponentsBuilder::new().security_scheme("adminToken", SecurityScheme::Http(bearer)).build()))
        .security(Some([SecurityRequirement::new("adminToken", Vec::<String>::new())]))
        .build()
}

/// The description as JSON. Each response says what it is, and each route names the problem that it may answer beside
/// its own responses: no token, a body that cannot be read, overload.
pub(super) fn finished(description: &OpenApi) -> String {
    let mut description = serde_json::to_value(description).unwrap_or_default();
    let paths = description.get_mut("paths").and_then(Value::as_object_mut);
    let routes = paths.into_iter().flatten();
    let routes = routes.filter_map(|(path, route)| Some((path, route.as_object_mut()?)));
    for (method, path, route) in
        routes.flat_map(|(path, route)| route.iter_mut().map(move |(method, route)| (method, path, route)))
    {
        route["operationId"] = json!(operation(method, path));
        let Some(responses) = route.get_mut("responses").and_then(Value::as_object_mut) else { continue };
        for (status, response) in responses.iter_mut() {
            let known = response.get("description").and_then(Value::as_str).is_some_and(|text| !text.is_empty());
            if !known {
                response["description"] = json!(reason(status));
            }
        }
        let schema = json!({"$ref": "#/components/schemas/Problem"});
        let any =
            json!({"description": "Refused; the problem says why", "content": {PROBLEM_JSON: {"schema": schema}}});
        responses.insert("default".to_owned(), any);
    }
    description.to_string()
}

/// A name of its own for each operation: `put_instances_id` for `PUT /api/v1/instances/{id}`.
fn operation(method: &str, path: &str) -> String {
    let path = path.strip_prefix("/api/v1").unwrap_or(path);
    let words = path.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    std::iter::once(method).chain(words).collect::<Vec<_>>().join("_")
}

fn reason(status: &str) -> &'static str {
    let status = status.parse().ok().and_then(|code| StatusCode::from_u16(code).ok());
    status.and_then(|status| status.canonical_reason()).unwrap_or("Response")
}
