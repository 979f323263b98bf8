"""Lightning DataModules: images, texts, pairs, labels, prompts, splits. Knows no encoder and no fusion."""
