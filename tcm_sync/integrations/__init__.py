"""What joins the client to web frameworks and to monitoring: one module each, and an extra of its name."""
