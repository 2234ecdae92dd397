// Pages that wait update themselves: polls a small JSON document until nothing more can change.
(function () {
  "use strict";
  var page = document.querySelector("[data-live]");
  if (!page) return;

  function setPill(element, status) {
    if (!element || element.textContent === status) return;
    element.className = "pill pill-" + status;
    element.textContent = status;
  }

  function showPhase(phase) {
    page.querySelectorAll("[data-phase]").forEach(function (row) {
      if (row.dataset.phase !== String(phase.number)) return;
      setPill(row.querySelector("[data-live-phase]"), phase.status);
      var counts = row.querySelector("[data-live-counts]");
      if (counts) counts.textContent = phase.counts;
      var left = row.querySelector("[data-live-left]");
      if (left) left.dataset.when = phase.when;
    });
  }

  // How long a bake still lasts, each second; other phases say when they got where they are.
  function tick() {
    page.querySelectorAll("[data-live-left]").forEach(function (element) {
      var when = element.dataset.when;
      var state = element.parentNode.querySelector("[data-live-phase]").textContent;
      if (!when) {
        element.textContent = "";
      } else if (state === "baking") {
        var seconds = Math.ceil((new Date(when) - Date.now()) / 1000);
        element.textContent = seconds > 0 ? seconds + " s left" : "about to end";
      } else {
        element.textContent = when.slice(11, 19) + " UTC";
      }
    });
  }
  tick();
  window.setInterval(tick, 1000);

  // The history only ever grows: what is new comes at its end.
  function showHistory(happenings) {
    var list = page.querySelector("[data-live-history]");
    if (!list) return;
    happenings.slice(list.children.length).forEach(function (happening) {
      var line = document.createElement("li");
      var pill = document.createElement("span");
      setPill(pill, happening.pill);
      var when = document.createElement("time");
      when.className = "quiet";
      when.textContent = happening.at;
      var words = " " + happening.text + (happening.reason ? ": “" + happening.reason + "”" : "") + " ";
      line.append(pill, words, when);
      list.append(line);
    });
  }

  function show(state) {
    setPill(page.querySelector("[data-live-approval]"), state.approval);
    setPill(page.querySelector("[data-live-deployment]"), state.deployment);
    var reason = page.querySelector("[data-live-reason]");
    if (reason) reason.textContent = state.reason || "";
    (state.targets || []).forEach(function (target) {
      page.querySelectorAll("[data-agent]").forEach(function (row) {
        if (row.dataset.agent !== target.name) return;
        setPill(row.querySelector("[data-live-target]"), target.status);
        var runs = row.querySelector("[data-live-runs]");
        if (runs) runs.textContent = target.runs || "nothing";
      });
    });
    (state.phases || []).forEach(showPhase);
    showHistory(state.history || []);
    tick();
    var open = state.approval === null || state.approval === "pending";
    if (state.approval !== null && !open) {
      var form = page.querySelector("form.decision");
      if (form) form.hidden = true;
    }
  }

  var pause = 700;
  function ask() {
    fetch(page.dataset.live, { headers: { Accept: "application/json" }, credentials: "same-origin" })
      .then(function (answer) {
        if (!answer.ok) throw new Error(String(answer.status));
        return answer.json();
      })
      .then(function (state) {
        show(state);
        pause = state.deployment === "pending_approval" || state.settled ? 3000 : 700;
        window.setTimeout(ask, pause);
      })
      .catch(function () {
        pause = Math.min(pause * 2, 15000);
        window.setTimeout(ask, pause);
      });
  }
  window.setTimeout(ask, pause);
})();
