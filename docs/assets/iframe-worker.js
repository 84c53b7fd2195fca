// A page that was opened from the disk may not start a Worker; the theme's search then works in a hidden frame.
if (location.protocol === "file:") {
  const load = (page, url) =>
    new Promise((done, failed) => {
      const script = page.createElement("script")
      script.src = url
      script.onload = done
      script.onerror = failed
      page.body.appendChild(script)
    })

  // The theme looks for this name, and takes it for a Worker.
  window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.appendChild(frame)
      const inside = frame.contentWindow
      // What a worker has and a frame has not.
      inside.postMessage = data => {
        const event = new MessageEvent("message", { data })
        this.dispatchEvent(event)
        this.onmessage?.(event)
      }
      inside.importScripts = (...urls) =>
        urls.reduce((before, each) => before.then(() => load(frame.contentDocument, each)), Promise.resolve())
      this.frame = frame
      this.ready = load(frame.contentDocument, url)
    }

    postMessage(data) {
      this.ready.then(() => this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data })))
    }

    terminate() {
      this.frame.remove()
    }
  }
  window.Worker = window.IFrameWorker
}
