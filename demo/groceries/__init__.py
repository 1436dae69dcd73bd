"""The demo on real photos: shop photos and mosaics of them, asked about products of a small catalogue."""
