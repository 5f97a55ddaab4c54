"""From a SQL model to a published snapshot."""
