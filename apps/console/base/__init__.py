"""The base of the console: the scoped ModelAdmin, forms, filters and badges."""
