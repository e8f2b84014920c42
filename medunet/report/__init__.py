"""Reports: pictures, plots, tables and the page that holds them.

Entry point: `page.render_page`. Reports know no torch and write no file.

From top to bottom: objects, plots, raster, page, pictures, planes, colours, table.
"""
