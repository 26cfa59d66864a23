"""What the readers of annotation files share: their images, their fields, their shapes and how these are drawn."""
