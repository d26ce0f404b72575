//! The JSON Schema of the document, for editors and for those who build documents.

use serde_json::Value;
use stepwell_document::Document;

/// The JSON Schema of the document. It says what a document looks like; what else is wrong with one is said by
/// [`crate::check`].
#[must_use]
pub fn document_schema() -> Value {
    let mut schema = schemars::schema_for!(Document);
    schema.insert("title".to_owned(), Value::from("Stepwell graph document"));
    schema.to_value()
}
