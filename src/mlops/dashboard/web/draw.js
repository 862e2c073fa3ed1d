// A sheet of paper to draw a digit on, with a pointer or with the keyboard.

const PEN_WIDTH = 22; // of 280, about as thick as MNIST's strokes
const STEP = 10; // that an arrow key moves the pen
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** Make a canvas drawable. `done()` is called when a stroke ends, `ask()` for Enter, and
 * `say(text)` announces the effect of a key. Returns {clear, show, blob, empty}. */
export function paper(canvas, pen, { done, ask, say, changed }) {
  const ink = canvas.getContext("2d");
  const size = canvas.width;
  let last = null; // where the pointer's stroke is
  const place = { x: size / 2, y: 60 }; // of the keyboard's pen
  let down = false;
  let drawn = false;

  function blank() {
    ink.fillStyle = "white";
    ink.fillRect(0, 0, size, size);
    last = null;
    lift();
  }

  function clear() {
    blank();
    mark(false);
  }

  function mark(now) {
    drawn = now;
    changed(now);
  }

  function lift() {
    down = false;
    pen.classList.remove("down");
  }

  function line(from, to) {
    ink.strokeStyle = "black";
    ink.lineWidth = PEN_WIDTH;
    ink.lineCap = ink.lineJoin = "round";
    ink.beginPath();
    ink.moveTo(from.x, from.y);
    ink.lineTo(to.x, to.y);
    ink.stroke();
    mark(true);
  }

  function at(event) {
    const box = canvas.getBoundingClientRect();
    const scale = size / box.width;
    return { x: (event.clientX - box.left) * scale, y: (event.clientY - box.top) * scale };
  }

  function movePen() {
    pen.style.left = `${(place.x / size) * 100}%`;
    pen.style.top = `${(place.y / size) * 100}%`;
  }

  canvas.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    canvas.setPointerCapture(event.pointerId);
    last = at(event);
    line(last, last);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!last) return;
    for (const part of event.getCoalescedEvents?.() ?? [event]) {
      const next = at(part);
      line(last, next);
      last = next;
    }
  });
  for (const name of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(name, () => {
      if (last) done();
      last = null;
    });
  }
  canvas.addEventListener("keydown", (event) => {
    const arrow = ARROWS[event.key];
    if (arrow) {
      const before = { ...place };
      place.x = Math.min(size, Math.max(0, place.x + arrow[0] * STEP));
      place.y = Math.min(size, Math.max(0, place.y + arrow[1] * STEP));
      if (down) line(before, place);
      const [column, row] = [place.x, place.y].map((way) => Math.round((way / size) * 100));
      say(`${column} % from the left, ${row} % from the top.`);
    } else if (event.key === " ") {
      down = !down;
      pen.classList.toggle("down", down);
      if (down) line(place, place);
      else done();
      say(down ? "The pen is down." : "The pen is up.");
    } else if (event.key === "Enter") ask();
    else if (["Delete", "Backspace", "Escape"].includes(event.key)) {
      clear();
      say("The paper is empty.");
    } else return;
    event.preventDefault();
    movePen();
  });

  clear();
  movePen();
  return {
    clear,
    empty: () => !drawn,
    blob: () => new Promise((resolve) => canvas.toBlob(resolve, "image/png")),
    /** Show a picture, as large as fits. */
    async show(file) {
      const picture = await createImageBitmap(file);
      const scale = size / Math.max(picture.width, picture.height);
      const [width, height] = [picture.width * scale, picture.height * scale];
      blank();
      ink.drawImage(picture, (size - width) / 2, (size - height) / 2, width, height);
      mark(true);
    },
  };
}
