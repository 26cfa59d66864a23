"""python segment.py product.onnx photo.jpg mask.png: needs onnxruntime, numpy and Pillow, and nothing of segtune."""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

model, photo, output = sys.argv[1:]
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
image = ImageOps.exif_transpose(Image.open(photo)).convert("RGB")  # upright, as the camera noted it
mask = session.run(["mask"], {"image": np.asarray(image)})[0]  # (height, width), training ids

facts = session.get_modelmeta().custom_metadata_map
names, colors = json.loads(facts["names"]), json.loads(facts["colors"])
picture = Image.fromarray(mask.astype(np.uint8))
picture.putpalette(bytes.fromhex("".join(color[1:] for color in colors)))
picture.save(output)
print({names[number]: f"{(mask == number).mean():.1%}" for number in np.unique(mask)})
