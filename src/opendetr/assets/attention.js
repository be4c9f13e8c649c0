// Shows what a detector attends to. The page has one <script class="attention-data"> per image with its numbers; see
// opendetr/analysis/attention_page.py, which writes them. There are two views of an image: of a detection (the decoder,
// by layer and head) and of a point (the encoder's self-attention from the cell there).
(() => {
  "use strict";
  const root = document.currentScript.closest(".attention");
  const settings = JSON.parse(root.querySelector(".attention-settings").textContent);
  const images = [...root.querySelectorAll(".attention-data")].map((script) => JSON.parse(script.textContent));
  const find = (name) => root.querySelector(`.attention-${name}`);
  const strip = find("strip"), stage = find("stage"), photo = stage.querySelector("img"), marker = find("point");
  const canvas = stage.querySelector("canvas"), list = find("detections"), status = find("status");
  const legend = find("legend"), words = find("words"), parts = root.querySelector("fieldset");
  const layerSlider = find("layer").querySelector("input"), headSlider = find("head").querySelector("input");

  // What is shown. `head` 0 is the mean of the heads; `detection` and `point` exclude each other.
  const state = { image: 0, detection: null, point: null, layer: 0, head: 0, part: "decoder" };
  let hovered = null;  // the detection under the mouse

  // ------------------------------------------------------------------------------------------------------ the numbers

  // Arrays are compressed and in base64. They are unpacked when their image is chosen, and kept.
  async function unpack(text, Type) {
    const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Type(await new Response(stream).arrayBuffer());
  }

  async function unpackAttention(attention) {
    if (attention === null || attention.values) return;
    attention.values = await unpack(attention.weights, Uint8Array);
    attention.maxima = await unpack(attention.largest, Float32Array);
    if (attention.kind === "sampled") attention.places = await unpack(attention.points, Uint16Array);
  }

  // The weights of one row (a detection or a cell). A row is stored as shares of its largest weight, in 8 bits.
  // Of dense attention, head 0 is the mean of the heads. Of sampled attention it is all points, divided by the heads:
  // heads sample different points, so there is nothing to average.
  function rowOf(attention, layer, head, row) {
    const { heads, rows, size } = attention;
    const chosen = head > 0 ? [head - 1] : [...Array(heads).keys()];
    const dense = attention.kind === "dense";
    const weights = new Float32Array(dense ? size : size * chosen.length);
    const places = dense ? null : new Float32Array(2 * size * chosen.length);
    chosen.forEach((one, position) => {
      const index = (layer * heads + one) * rows + row;
      const unit = attention.maxima[index] / 255 / chosen.length;
      const start = dense ? 0 : position * size;
      for (let k = 0; k < size; k++) weights[start + k] += attention.values[index * size + k] * unit;
      if (dense) return;
      const [low, high] = settings.places;
      for (let k = 0; k < 2 * size; k++) {
        places[2 * start + k] = low + (attention.places[2 * index * size + k] / 65535) * (high - low);
      }
    });
    return { weights, places };
  }

  // ------------------------------------------------------------------------------------------------------ the drawing

  function heatColour(share) {
    const position = Math.min(Math.max(share, 0), 1) * (settings.heat.length - 1);
    const first = Math.min(Math.floor(position), settings.heat.length - 2), rest = position - first;
    return settings.heat[first].map((value, channel) => value + rest * (settings.heat[first + 1][channel] - value));
  }

  function drawHeat(context, attention, weights) {
    const [h, w] = attention.shape;
    const largest = weights.subarray(0, h * w).reduce((a, b) => Math.max(a, b), 1e-12);
    const cells = new ImageData(w, h);
    for (let k = 0; k < h * w; k++) {
      const share = weights[k] / largest;
      cells.data.set([...heatColour(share), 255 * (settings.cover[0] + settings.cover[1] * share)], 4 * k);
    }
    const small = new OffscreenCanvas(w, h);
    small.getContext("2d").putImageData(cells, 0, 0);
    context.imageSmoothingQuality = "high";
    context.drawImage(small, 0, 0, canvas.width, canvas.height);
    return largest;
  }

  function drawPoints(context, attention, { weights, places }) {
    context.fillStyle = "rgba(0, 0, 0, .5)";
    context.fillRect(0, 0, canvas.width, canvas.height);
    const largest = weights.reduce((a, b) => Math.max(a, b), 1e-12);
    const radius = settings.radius * Math.max(canvas.width, canvas.height);
    const order = [...weights.keys()].sort((a, b) => weights[b] - weights[a]);  // small points over large ones
    context.lineWidth = Math.max(1, canvas.width / 700);
    context.strokeStyle = "#fff";
    for (const k of order) {
      const r = radius * Math.sqrt(weights[k] / largest);  // the area is proportional to the weight
      if (r < 0.5) break;
      const level = Math.floor((k % attention.size) / attention.points_per_level);
      context.beginPath();
      context.arc(places[2 * k] * canvas.width, places[2 * k + 1] * canvas.height, r, 0, 2 * Math.PI);
      context.fillStyle = settings.levels[level % settings.levels.length];
      context.fill();
      context.stroke();
    }
    return largest;
  }

  const percent = (share) => `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)} %`;

  function outside({ weights, places }) {
    let sum = 0;
    weights.forEach((weight, k) => {
      const x = places[2 * k], y = places[2 * k + 1];
      if (x < 0 || x > 1 || y < 0 || y > 1) sum += weight;
    });
    return sum;
  }

  function cellAt(point, [h, w]) {
    const row = Math.min(h - 1, Math.floor(point.y * h)), column = Math.min(w - 1, Math.floor(point.x * w));
    return row * w + column;
  }

  function draw() {
    const image = images[state.image], ofPoint = state.point !== null;
    const attention = ofPoint ? image.encoder : image[state.part] || image.decoder;
    const context = canvas.getContext("2d");
    const ratio = window.devicePixelRatio || 1;
    canvas.width = Math.max(1, Math.round(stage.clientWidth * ratio));
    canvas.height = Math.max(1, Math.round(stage.clientHeight * ratio));
    legend.replaceChildren();
    words.replaceChildren();
    marker.hidden = !ofPoint;
    stage.dataset.view = ofPoint ? "point" : "detection";
    if (ofPoint) Object.assign(marker.style, { left: `${100 * state.point.x}%`, top: `${100 * state.point.y}%` });
    describeControls(ofPoint);
    const shown = ofPoint ? attention !== null : state.detection !== null;
    if (!shown || !attention.values) {
      const nothing = ofPoint ? "The model has no encoder layers." : "No detection is chosen.";
      if (!shown) status.textContent = nothing;
      return;
    }
    const layer = ofPoint ? 0 : state.layer, head = ofPoint ? 0 : state.head;
    const row = rowOf(attention, layer, head, ofPoint ? cellAt(state.point, attention.grid) : state.detection);
    const dense = attention.kind === "dense";
    const largest = dense ? drawHeat(context, attention, row.weights) : drawPoints(context, attention, row);
    describe(image, attention, row, largest, ofPoint);
  }

  // ------------------------------------------------------------------------------------------------------- the texts

  function element(tag, text, options = {}) {
    return Object.assign(document.createElement(tag), { textContent: text, ...options });
  }

  function describe(image, attention, row, largest, ofPoint) {
    const dense = attention.kind === "dense";
    const many = `${ofPoint ? attention.averaged || attention.heads : attention.heads} heads`;
    const heads = ofPoint || state.head === 0 ? (dense ? `mean of ${many}` : `all ${many}`) : `head ${state.head}`;
    const found = image.detections[state.detection];
    const title = ofPoint ? "Encoder self-attention from the marked point" : `${found.name} ${found.score}`;
    const level = !dense && attention.grids.length > 1 ? `, a cell of level ${attention.level + 1}` : "";
    const place = ofPoint ? `last encoder layer${level}` : `decoder layer ${state.layer + 1} of ${attention.layers}`;
    const part = !ofPoint && image.spatial && state.part === "spatial" ? ", from position only" : "";
    const sentences = [`${place}, ${heads}${part}.`];
    sentences.push(`The strongest ${dense ? "cell" : "point"} has ${percent(largest)} of the weight.`);
    if (!dense && outside(row) > 0.0005) sentences.push(`Points outside the image have ${percent(outside(row))}.`);
    if (dense && attention.tokens.length) {
      const cells = attention.shape[0] * attention.shape[1];
      const onWords = row.weights.subarray(cells).reduce((a, b) => a + b, 0);
      sentences.push(`The words have ${percent(onWords)}.`);
      showWords(attention, row.weights.subarray(cells));
    }
    const text = sentences.join(" ");
    status.replaceChildren(element("b", title), text[0].toUpperCase() + text.slice(1));
    if (dense) {
      const stops = settings.heat.map((colour) => `rgb(${colour})`);
      const bar = element("i", "", { className: "bar" });
      bar.style.background = `linear-gradient(90deg, ${stops})`;
      legend.append("weight of a cell: 0", bar, percent(largest));
    } else {
      attention.grids.forEach(([h, w], level) => {
        const dot = element("i", "");
        dot.style.background = settings.levels[level % settings.levels.length];
        const item = element("span", "");
        item.append(dot, `level ${level + 1}: ${w} × ${h} cells`);
        legend.append(item);
      });
      legend.append("area of a point: its weight");
    }
  }

  // The tokens of the caption, each underlined the more strongly the higher its weight.
  function showWords(attention, weights) {
    const largest = weights.reduce((a, b) => Math.max(a, b), 1e-12);
    attention.tokens.forEach((token, k) => {
      const word = element("span", token, { title: percent(weights[k]) });
      const strength = Math.round((100 * weights[k]) / largest);
      word.style.borderBottomColor = `color-mix(in srgb, var(--mark) ${strength}%, transparent)`;
      words.append(word, " ");
    });
  }

  function describeControls(ofPoint) {
    const { layers, heads } = images[state.image].decoder;
    for (const [slider, name, value, text] of [
      [layerSlider, "layer", state.layer + 1, `${state.layer + 1} of ${layers}`],
      [headSlider, "head", state.head, state.head ? `${state.head} of ${heads}` : "mean"],
    ]) {
      slider.max = name === "layer" ? layers : heads;
      slider.value = value;
      slider.disabled = ofPoint;  // the page has the encoder's last layer and the mean of its heads only
      slider.setAttribute("aria-valuetext", text);
      find(name).toggleAttribute("data-off", ofPoint);
      find(name).querySelector("output").textContent = text;
    }
    parts.hidden = !images[state.image].spatial;
    parts.disabled = ofPoint;
    [...list.children].forEach((button, index) => button.setAttribute("aria-pressed", index === state.detection));
    stage.querySelectorAll(".attention-box").forEach((box, index) => {
      box.classList.toggle("chosen", index === state.detection);
    });
  }

  // ------------------------------------------------------------------------------------------------------- the choice

  function chooseDetection(index) {
    Object.assign(state, { detection: index, point: null });
    draw();
  }

  function choosePoint(x, y) {
    const clip = (value) => Math.min(Math.max(value, 0), 1);
    Object.assign(state, { detection: null, point: { x: clip(x), y: clip(y) } });
    draw();
  }

  async function chooseImage(index) {
    const image = images[index];
    const decoder = image.decoder;
    Object.assign(state, { image: index, detection: image.detections.length ? 0 : null, point: null });
    Object.assign(state, { layer: decoder.layers - 1, head: Math.min(state.head, decoder.heads) });
    state.part = image.spatial ? root.querySelector("fieldset input:checked").value : "decoder";
    hovered = null;
    photo.src = image.pixels;
    photo.alt = `Image ${image.name}`;
    stage.style.aspectRatio = `${image.width} / ${image.height}`;
    stage.style.maxWidth = `calc(80vh * ${image.width / image.height})`;  // the sliders stay in sight
    [...strip.children].forEach((button, k) => button.setAttribute("aria-pressed", k === index));
    stage.querySelectorAll(".attention-box").forEach((box) => box.remove());
    list.replaceChildren(...image.detections.map(detectionButton));
    stage.insertBefore(boxesOf(image), marker);
    find("none").hidden = image.detections.length > 0;
    draw();
    status.setAttribute("aria-busy", "true");
    await Promise.all([image.decoder, image.spatial, image.encoder].map(unpackAttention));
    status.removeAttribute("aria-busy");
    if (state.image === index) draw();  // another one may have been chosen in the meantime
  }

  function detectionButton(found, index) {
    const button = element("button", "", { type: "button" });
    button.setAttribute("aria-label", `${found.name}, score ${found.score}: show what the decoder attends to`);
    button.append(element("b", found.name), element("span", found.score));
    // Not "click" alone: tabbing to a detection shows it, and so does the mouse.
    for (const event of ["focus", "click"]) button.addEventListener(event, () => chooseDetection(index));
    button.addEventListener("pointerenter", (event) => {
      if (event.pointerType === "mouse") chooseDetection(index);
    });
    return button;
  }

  function boxesOf(image) {
    const boxes = document.createDocumentFragment();
    for (const { box: [left, top, right, bottom], name, score } of image.detections) {
      const box = element("div", "", { className: "attention-box" });
      box.classList.toggle("high", top < 0.08);
      box.classList.toggle("low", bottom > 0.92);
      box.classList.toggle("right", left > 0.6);
      Object.assign(box.style, { left: `${100 * left}%`, top: `${100 * top}%` });
      Object.assign(box.style, { width: `${100 * (right - left)}%`, height: `${100 * (bottom - top)}%` });
      box.append(element("span", `${name} ${score}`));
      boxes.append(box);
    }
    return boxes;
  }

  function placeOf(event) {
    const area = stage.getBoundingClientRect();
    return [(event.clientX - area.left) / area.width, (event.clientY - area.top) / area.height];
  }

  // The smallest box at a place: large ones would hide those inside them.
  function detectionAt([x, y]) {
    const area = ([left, top, right, bottom]) => (right - left) * (bottom - top);
    const hits = images[state.image].detections
      .map(({ box }, index) => ({ box, index }))
      .filter(({ box: [left, top, right, bottom] }) => left <= x && x <= right && top <= y && y <= bottom)
      .sort((a, b) => area(a.box) - area(b.box));
    return hits.length ? hits[0].index : null;
  }

  stage.addEventListener("pointermove", (event) => {
    if (event.pointerType !== "mouse") return;  // a finger does not hover
    // A detection is shown when the mouse enters it. So the view of a clicked point stays while the mouse is moved
    // inside the same box.
    const index = detectionAt(placeOf(event));
    if (index !== hovered && index !== null) chooseDetection(index);
    hovered = index;
  });
  stage.addEventListener("pointerleave", () => { hovered = null; });
  stage.addEventListener("click", (event) => choosePoint(...placeOf(event)));

  // With the keyboard, the arrows move the point by a cell. Escape returns to the detections.
  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1], Enter: [0, 0], " ": [0, 0] };
  stage.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && images[state.image].detections.length) chooseDetection(0);
    if (!(event.key in steps)) return;
    event.preventDefault();
    const encoder = images[state.image].encoder, [h, w] = encoder ? encoder.grid : [10, 10];
    const from = state.point || { x: 0.5, y: 0.5 }, [right, down] = state.point ? steps[event.key] : [0, 0];
    choosePoint(from.x + right / w, from.y + down / h);
  });

  layerSlider.addEventListener("input", () => { state.layer = layerSlider.valueAsNumber - 1; draw(); });
  headSlider.addEventListener("input", () => { state.head = headSlider.valueAsNumber; draw(); });
  parts.form.addEventListener("submit", (event) => event.preventDefault());  // Enter would load the page again
  parts.addEventListener("change", (event) => { state.part = event.target.value; draw(); });
  new ResizeObserver(draw).observe(stage);

  strip.append(...images.map((image, index) => {
    const button = element("button", "", { type: "button", title: image.name });
    button.setAttribute("aria-label", `Image ${index + 1} of ${images.length}: ${image.name}`);
    button.append(Object.assign(new Image(), { src: image.pixels, alt: "" }));
    button.addEventListener("click", () => chooseImage(index));
    return button;
  }));
  strip.hidden = images.length < 2;
  chooseImage(0);
})();
