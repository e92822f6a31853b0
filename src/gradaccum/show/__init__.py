"""What people see: text, HTML, SVG and snippets, drawn from a Plan that computes nothing more."""
