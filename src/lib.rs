//! t3c: a compiler that removes the wait between a matrix product and its collective.
