//! The t3 dialect, the context, typed views, diagnostics and the interpreter.
