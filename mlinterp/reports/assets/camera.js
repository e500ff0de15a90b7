// Pan by drag, zoom by wheel: a transform of the stage inside the canvas.

const ZOOM = { least: 0.06, start: 1.25, most: 3 };

function makeCamera(canvas, stage) {
  const view = { x: 0, y: 0, k: 1, whole: false }; // whole: all of the graph is in view, by an own doing of the page
  const apply = () => {
    stage.setAttribute("transform", `translate(${view.x} ${view.y}) scale(${view.k})`);
    canvas.classList.toggle("far", view.k < 0.45);
  };
  const room = () => ({ width: canvas.clientWidth || 1, height: canvas.clientHeight || 1 });

  const zoom = (factor, x = room().width / 2, y = room().height / 2) => {
    const k = Math.min(ZOOM.most, Math.max(ZOOM.least, view.k * factor));
    Object.assign(view, { x: x - ((x - view.x) * k) / view.k, y: y - ((y - view.y) * k) / view.k, k, whole: false });
    apply();
  };
  const look = (x, y, k) => {
    const { width, height } = room();
    Object.assign(view, { k, x: width / 2 - k * x, y: height / 2 - k * y });
    apply();
  };
  const fit = (box) => {
    const { width, height } = room();
    const k = Math.min(ZOOM.start, width / (box.right - box.left + 48), height / (box.bottom - box.top + 48));
    look((box.left + box.right) / 2, (box.top + box.bottom) / 2, Math.max(ZOOM.least, k));
    view.whole = true;
  };
  // As wide as the canvas, but no smaller than `least`; then `anchor` (a node's place) is in view.
  const fitWidth = (box, anchor, least) => {
    const { width, height } = room();
    const k = Math.max(least, Math.min(ZOOM.start, width / (box.right - box.left + 48)));
    const along = (low, high, wanted, extent) => {
      const half = extent / 2 / k;
      return high - low <= 2 * half ? (low + high) / 2 : Math.min(high - half, Math.max(low + half, wanted));
    };
    const margin = 24;
    look(along(box.left - margin, box.right + margin, anchor.x, width), along(box.top - margin, box.bottom + margin, anchor.y, height), k);
    view.whole = k * (box.right - box.left) <= width && k * (box.bottom - box.top) <= height;
  };
  // Move as little as needed for a place to be in view.
  const reveal = (place, margin = 40) => {
    const { width, height } = room();
    const shift = (low, high, extent) =>
      low < margin ? margin - low : high > extent - margin ? Math.max(margin - low, extent - margin - high) : 0;
    view.x += shift(view.x + view.k * (place.x - place.width / 2), view.x + view.k * (place.x + place.width / 2), width);
    view.y += shift(view.y + view.k * (place.y - place.height / 2), view.y + view.k * (place.y + place.height / 2), height);
    apply();
  };
  // A place that has moved in the layout stays where it is on the screen.
  const keep = (before, after) => {
    if (before.x === after.x && before.y === after.y) return;
    view.whole = false;
    view.x += view.k * (before.x - after.x);
    view.y += view.k * (before.y - after.y);
    apply();
  };

  canvas.addEventListener(
    "wheel",
    (event) => {
      event.preventDefault();
      const box = canvas.getBoundingClientRect();
      zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0016)), event.clientX - box.left, event.clientY - box.top);
    },
    { passive: false },
  );

  let drag = null;
  canvas.addEventListener("pointerdown", (event) => {
    drag = event.button === 0 ? { x: event.clientX, y: event.clientY } : null;
    canvas.classList.remove("dragged");
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!drag) return;
    const [dx, dy] = [event.clientX - drag.x, event.clientY - drag.y];
    if (!canvas.classList.contains("dragged")) {
      if (Math.hypot(dx, dy) < 4) return;
      canvas.setPointerCapture(event.pointerId);
      canvas.classList.add("dragging", "dragged");
    }
    drag = { x: event.clientX, y: event.clientY };
    view.whole = false;
    view.x += dx;
    view.y += dy;
    apply();
  });
  for (const end of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(end, () => {
      drag = null;
      canvas.classList.remove("dragging");
    });
  }

  return { zoom, fit, fitWidth, reveal, keep, isWhole: () => view.whole };
}
