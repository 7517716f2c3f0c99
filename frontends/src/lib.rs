//! Importers: model files to linalg with shard annotations.
