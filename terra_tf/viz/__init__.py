"""Pictures of what was traced and built: neutral graphs first, then a renderer for each tool."""
