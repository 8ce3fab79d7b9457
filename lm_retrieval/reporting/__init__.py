"""Reports for people: tables, pictures and pages made from results."""
