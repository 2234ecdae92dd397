"""HTTP: what people do with agents (`people`), how one gets in (`enrollment`), what agents call (`protocol`)."""
