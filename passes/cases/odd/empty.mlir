// pass: every
// Nothing at all.

