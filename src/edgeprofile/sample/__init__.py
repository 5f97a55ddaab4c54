"""The sample shop: SQL that makes a warehouse, the model over it, and its settings, as `edgeprofile demo` uses them."""
