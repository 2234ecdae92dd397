// A live page polls for the cards that differ from those it has, and replaces them. It reports failures, pauses while the
// tab is hidden, and stops polling once the state is final; user activity then triggers one more poll.
(function () {
  "use strict";
  var page = document.querySelector("[data-live-page]");
  if (!page) return;
  var notice = page.querySelector("[data-live-notice]");
  var announcer = page.querySelector("[data-live-announcement]");
  var footing = page.querySelector("[data-live-footing]");
  var pause = Number(page.dataset.pause) || 1;
  var settled = page.dataset.settled === "true";
  var announced = page.dataset.announcement || "";
  var ANSWER_WITHIN = 6, LONGEST_PAUSE = 15, LOOK_AGAIN_AFTER = 5;
  var timer = null, asking = false, stopped = false, failures = 0, lastAnswer = new Date(), lastAsked = lastAnswer;

  function clock(moment) {
    return moment.toISOString().slice(0, 19).replace("T", " ") + " UTC";
  }

  function warn(text, link) {
    if (notice.dataset.text === text) return;
    notice.dataset.text = text;
    notice.textContent = text;
    if (link) {
      var anchor = document.createElement("a");
      anchor.href = link.href;
      anchor.textContent = link.text;
      notice.append(" ", anchor);
    }
    notice.hidden = false;
  }

  function clearWarning() {
    if (notice.hidden) return;
    notice.hidden = true;
    notice.textContent = "";
    delete notice.dataset.text;
  }

  function showFooting() {
    if (!footing) return;
    footing.textContent = settled
      ? "Final state. Last checked at " + clock(lastAnswer) + "; checked again when you use the page."
      : "This page updates automatically.";
  }

  // Keep typed text, opened details and focus when a card is replaced.
  function remember(card) {
    var typed = {}, open = {}, focused = null, active = document.activeElement;
    card.querySelectorAll("textarea[name], input[name]:not([type=hidden])").forEach(function (field) {
      if (field.value !== field.defaultValue) typed[field.name] = field.value;
    });
    card.querySelectorAll("details[id]").forEach(function (details) { open[details.id] = details.open; });
    if (card.contains(active)) {
      focused = { id: active.id, name: active.name, value: active.value, href: active.getAttribute("href") };
      if (typeof active.selectionStart === "number") focused.selection = [active.selectionStart, active.selectionEnd];
    }
    return { typed: typed, open: open, focused: focused };
  }

  function restore(card, before) {
    Object.keys(before.typed).forEach(function (name) {
      card.querySelectorAll("[name]").forEach(function (field) {
        if (field.name === name && field.tagName !== "BUTTON") field.value = before.typed[name];
      });
    });
    Object.keys(before.open).forEach(function (id) {
      var details = document.getElementById(id);
      if (details) details.open = before.open[id];
    });
    var was = before.focused;
    if (!was) return;
    var now = was.id ? document.getElementById(was.id) : null;
    if (!now) {
      now = Array.prototype.find.call(card.querySelectorAll("button, a, textarea, input"), function (element) {
        if (was.href) return element.getAttribute("href") === was.href;
        return was.name && element.name === was.name && (element.tagName !== "BUTTON" || element.value === was.value);
      });
    }
    if (!now) {
      now = card.querySelector("h2");
      if (now) now.tabIndex = -1;
    }
    if (!now) return;
    now.focus({ preventScroll: true });
    if (was.selection && now.setSelectionRange) now.setSelectionRange(was.selection[0], was.selection[1]);
  }

  function show(answer) {
    Object.keys(answer.cards).forEach(function (name) {
      var card = page.querySelector('[data-card="' + name + '"]');
      if (!card) return;
      var before = remember(card);
      card.innerHTML = answer.cards[name].html;
      card.dataset.version = answer.cards[name].version;
      restore(card, before);
    });
    document.title = answer.title;
    if (answer.announcement !== announced) {
      announced = answer.announcement;
      announcer.textContent = announced;
    }
    tick();
  }

  function known() {
    return Array.prototype.map
      .call(page.querySelectorAll("[data-card]"), function (card) {
        return card.dataset.card + ":" + card.dataset.version;
      })
      .join(",");
  }

  function schedule(seconds) {
    window.clearTimeout(timer);
    if (!document.hidden && !settled && !stopped) timer = window.setTimeout(ask, seconds * 1000);
  }

  function ask() {
    if (asking) return;
    asking = true;
    lastAsked = new Date();
    window.clearTimeout(timer);
    var abort = new AbortController();
    var limit = window.setTimeout(function () { abort.abort(); }, ANSWER_WITHIN * 1000);
    var url = page.dataset.livePage;
    url += (url.indexOf("?") < 0 ? "?" : "&") + "known=" + encodeURIComponent(known());
    fetch(url, {
      headers: { Accept: "application/json" }, credentials: "same-origin", redirect: "manual", signal: abort.signal
    })
      .then(function (response) {
        if (response.type === "opaqueredirect" || response.status === 401) return { ended: "session" };
        if (response.status === 403 || response.status === 404) return { ended: "not_found" };
        if (!response.ok) throw new Error(String(response.status));
        return response.json();
      })
      .then(function (answer) {
        stopped = Boolean(answer.ended);
        if (answer.ended === "session") {
          warn("You are signed out: this page no longer updates. It shows the state at " + clock(lastAnswer) + ".", {
            href: page.dataset.signIn, text: "Sign in again"
          });
          return;
        }
        if (answer.ended === "not_found") {
          warn("Not found: this was deleted, or your role changed. The page shows the state at " +
            clock(lastAnswer) + ".");
          return;
        }
        failures = 0;
        lastAnswer = new Date();
        clearWarning();
        settled = answer.settled;
        pause = answer.pause;
        show(answer);
        showFooting();
      })
      .catch(function () {
        failures += 1;
        warn("No connection to the server: this page shows the state at " + clock(lastAnswer) +
          "; reconnecting.");
      })
      .finally(function () {
        window.clearTimeout(limit);
        asking = false;
        if (failures && !stopped) {
          settled = false;
          schedule(Math.min(Math.pow(2, failures), LONGEST_PAUSE));
        } else {
          schedule(pause);
        }
      });
  }

  // Update the remaining bake time each second.
  function tick() {
    page.querySelectorAll("[data-ends-at]").forEach(function (element) {
      var seconds = Math.ceil((new Date(element.dataset.endsAt) - Date.now()) / 1000);
      element.textContent = seconds > 0 ? seconds + " s left" : "about to end";
    });
  }

  // On user activity, a page that stopped polls again, at most every few seconds.
  function used() {
    if (document.hidden || (!settled && !stopped)) return;
    if (new Date() - lastAsked > LOOK_AGAIN_AFTER * 1000) ask();
  }
  ["pointerdown", "pointermove", "keydown", "focusin", "scroll"].forEach(function (kind) {
    document.addEventListener(kind, used, { passive: true });
  });
  window.addEventListener("focus", used);
  document.addEventListener("visibilitychange", function () {
    if (document.hidden) window.clearTimeout(timer);
    else ask();
  });
  window.addEventListener("pageshow", function (event) {
    if (event.persisted) ask();
  });
  tick();
  window.setInterval(tick, 1000);
  showFooting();
  schedule(pause);
})();
