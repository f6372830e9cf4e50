"""A run's report, from its published artifacts and, once it was served, its traffic."""
