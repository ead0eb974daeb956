"""`report.html` of a lifetime: one self-contained page. `page.render_lifetime` is its door."""
