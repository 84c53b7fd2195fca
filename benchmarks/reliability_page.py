def page(r): return "x\n"
