use super::*;

#[test]
fn the_shortest_recipe_is_the_default() {
    let recipe = Recipe::from_json(r#"{"schema": "t3c.portool/1"}"#).unwrap();
    assert_eq!(recipe, Recipe::default());
    let text = serde_json::to_string(&recipe).unwrap();
    assert_eq!(Recipe::from_json(&text).unwrap(), recipe);
    assert_eq!(recipe.shapes().decode.blocks, 24 * 8 * 8 + 1);
}

#[test]
fn bad_recipes_name_what_is_wrong() {
    let cases = [
        (r#"{"schema": "t3c.portool/2"}"#, "t3c.portool/2"),
        (r#"{}"#, "schema"),
        (r#"{"schema": "t3c.portool/1", "sede": 3}"#, "sede"),
        (r#"{"schema": "t3c.portool/1", "rl": {"lr": 3}}"#, "lr"),
        (r#"{"schema": "t3c.portool/1", "rl": {"credit": {"gama": 1}}}"#, "gama"),
        (r#"{"schema": "t3c.portool/1", "rl": {"questions": -1}}"#, "-1"),
        (r#"{"schema": "t3c.portool/1", "rl": {"questions": 0}}"#, "rl.questions"),
        (r#"{"schema": "t3c.portool/1", "rl": {"credit": {"gamma": 2}}}"#, "rl.credit.gamma"),
        (r#"{"schema": "t3c.portool/1", "model": {"num_key_value_heads": 3}}"#, "num_key_value_heads"),
        (r#"{"schema": "t3c.portool/1", "task": {"mix": [0, 0, 0]}}"#, "task.mix"),
        (r#"{"schema": "t3c.portool/1", "rl": {"trajectories": 60}}"#, "rl.batches"),
        (r#"{"schema": "t3c.portool/1", "rl": {"questions": 60000, "trajectories": 60000}}"#, "rl.questions"),
        (
            r#"{"schema": "t3c.portool/1", "evaluation": {"questions": 1000000000000}}"#,
            "evaluation.questions",
        ),
        (r#"{"schema": "t3c.portool/1""#, "EOF"),
    ];
    for (text, named) in cases {
        let message = Recipe::from_json(text).unwrap_err().to_string();
        assert!(message.contains(named), "{text}: {message}");
    }
    let error = Recipe::from_json("{\"schema\": \"t3c.portool/1\",\n \"sede\": 3}").unwrap_err();
    assert!(matches!(error, RecipeError::Json { line: 2, column: 7, .. }), "{error:?}");
}

#[test]
fn every_field_of_the_schema_is_described() {
    fn check(schema: &serde_json::Value, path: &str) {
        if let Some(properties) = schema.get("properties").and_then(|p| p.as_object()) {
            for (name, property) in properties {
                let here = format!("{path}.{name}");
                let described = property.get("description").is_some();
                let references = property.get("$ref").is_some();
                assert!(described || references, "{here} has no description");
                check(property, &here);
            }
        }
        if let Some(definitions) = schema.get("$defs").and_then(|d| d.as_object()) {
            for (name, definition) in definitions {
                check(definition, name);
            }
        }
    }
    let schema = Recipe::json_schema();
    assert!(schema["properties"]["rl"].is_object());
    check(&schema, "recipe");
}
