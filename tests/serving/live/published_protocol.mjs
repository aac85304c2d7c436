// Speaks the published protocol to a server, as any application would: node published_protocol.mjs ws://HOST/ws
// Prints one line of JSON: the progress it was told, and the events.
const socket = new WebSocket(process.argv[2]);
const progress = [];
const events = [];

const send = (type, data) => socket.send(JSON.stringify(data === undefined ? { type } : { type, data }));

socket.onopen = () => {
  send("schedule_prompt", { new_prompt: "a red balloon over hills at noon", timestamp: 0 });
  send("schedule_prompt", { new_prompt: "a red balloon over hills at night", timestamp: 30 });
  send("start");
};

socket.onmessage = ({ data }) => {
  if (typeof data !== "string") return;
  const message = JSON.parse(data);
  if (message.type === "event") events.push(message.data);
  if (message.type !== "progress") return;
  progress.push(message.data.current_start_frame);
  if (progress.at(-1) === 45) send("reset");
  if (progress.length > 1 && progress.at(-1) === 0) socket.close();
};

socket.onclose = () => console.log(JSON.stringify({ progress, events }));
