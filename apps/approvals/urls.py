"""Paths of approvals, relative to the API prefix."""

from django.urls import path

from apps.approvals import api

_ENV = "orgs/<uuid:org_id>/projects/<uuid:project_id>/environments/<uuid:environment_id>"
_ONE = f"{_ENV}/approvals/<uuid:approval_id>"

urlpatterns = [
    path("me/approvals", api.MyApprovalsView.as_view()),
    path(f"{_ENV}/approvals", api.ApprovalsView.as_view()),
    path(_ONE, api.ApprovalView.as_view()),
    path(f"{_ONE}/approve", api.ApproveView.as_view()),
    path(f"{_ONE}/deny", api.DenyView.as_view()),
    path(f"{_ONE}/revoke", api.RevokeView.as_view()),
    path(f"{_ONE}/credential", api.CredentialView.as_view()),
]
