// node segment.mjs MODELS NAME PICTURE...: the mask of each picture, as bytes of ids beside it, by transformers.js alone.
import { writeFileSync } from "node:fs";
import { env, pipeline, RawImage } from "@huggingface/transformers";

const [models, name, ...pictures] = process.argv.slice(2);
env.allowRemoteModels = false;
env.localModelPath = models;
const segment = await pipeline("image-segmentation", name, { dtype: "fp32" });
for (const picture of pictures) {
  const image = await RawImage.read(picture);
  const ids = new Uint8Array(image.width * image.height).fill(255);
  for (const { label, mask } of await segment(image)) {
    const id = segment.model.config.label2id[label];
    mask.data.forEach((value, i) => value && (ids[i] = id));
  }
  writeFileSync(`${picture}.ids`, ids);
}
