"""`report.html`: one self-contained page per run. `page.render_report` is its door."""
