"""Base of the admins whose rows have a live page with actions: approvals and deployments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse

from apps.console.base.forms import path_of
from apps.console.base.model_admin import ScopedModelAdmin
from apps.console.live import LivePage, live_answer
from apps.core.errors import ServiceError, StateConflict


class LivePageAdmin(ScopedModelAdmin):
    """A ModelAdmin whose page of a row is live: a GET shows it, a POST acts on the row, and its browser polls `state/`.

    The template is `admin/<app>/<model>/page.html`.
    """

    ordering = ("-id",)
    text_field: ClassVar[str]
    """The field of the posted form whose text is shown again when the action is refused."""
    text_length: ClassVar[int] = 2000
    already: ClassVar[Mapping[str, str]]
    """{status: the sentence for an action on a row that has it already}, for a second click or a concurrent action."""

    def page_of(self, request: HttpRequest, row: Any, *, text: str = "", polled: bool = False) -> LivePage:
        """The page of `row` now; `text` is that of a refused action."""
        raise NotImplementedError

    def page_context(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        """The variables of the template, apart from the cards."""
        return {
            **self.admin_site.each_context(request),
            "opts": self.model._meta,
            "where": path_of(row.environment),
        }

    def act(self, request: HttpRequest, row: Any) -> None:
        """Do what was posted. Raises ServiceError."""
        raise NotImplementedError

    @property
    def _page_name(self) -> str:
        return f"{self.model._meta.app_label}_{self.model._meta.model_name}"

    def get_urls(self) -> list[URLPattern]:
        state = self.admin_site.admin_view(self.state_view)
        return [path("<uuid:object_id>/state/", state, name=f"{self._page_name}_state"), *super().get_urls()]

    def state_view(self, request: HttpRequest, object_id: Any) -> HttpResponse:
        """Answer a poll of the live page with the cards that changed."""
        row = self.object_or_404(request, str(object_id))
        return live_answer(request, self.page_of(request, row, polled=True))

    def change_view(self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None) -> Any:
        row = self.object_or_404(request, object_id)
        status, refusal, text, headers = 200, None, "", {}
        if request.method == "POST":
            text = request.POST.get(self.text_field, "")[: self.text_length]
            try:
                self.act(request, row)
            except ServiceError as error:
                if isinstance(error, StateConflict):
                    error.detail = self.already.get(error.from_, error.detail)
                status, refusal, headers = error.status, error, dict(error.headers)
            else:
                return HttpResponseRedirect(request.get_full_path())
            row = self.object_or_404(request, object_id)
        page = self.page_of(request, row, text=text)
        state_url = reverse(f"admin:{self._page_name}_state", args=[row.pk])
        query = request.GET.urlencode()
        context = {
            **self.page_context(request, row),
            "tab_title": page.title,
            "page": page,
            "refusal": refusal,
            "live_url": f"{state_url}?{query}" if query else state_url,
        }
        template = f"admin/{self.model._meta.app_label}/{self.model._meta.model_name}/page.html"
        return TemplateResponse(request, template, context, status=status, headers=headers)
