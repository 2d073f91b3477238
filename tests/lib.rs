//! Nothing here: the tests are in `system/`.
