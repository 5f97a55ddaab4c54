"""edgeprofile: customer profiles from a data warehouse, served over HTTP at the edge."""
