"""The words that every room uses: errors, parts, label sets, bundles, metrics, seeds, blocks, files."""
