"""Paths of approvals, relative to the API prefix."""

from django.urls import path

from apps.api.paths import ENVIRONMENT
from apps.approvals import api

ONE = f"{ENVIRONMENT}/approvals/<uuid:approval_id>"

urlpatterns = [
    path("me/approvals", api.MyApprovalsView.as_view(), name="my-approvals"),
    path(f"{ENVIRONMENT}/approvals", api.ApprovalsView.as_view(), name="approvals"),
    path(ONE, api.ApprovalView.as_view(), name="approval"),
    path(f"{ONE}/approve", api.ApproveView.as_view(), name="approval-approve"),
    path(f"{ONE}/deny", api.DenyView.as_view(), name="approval-deny"),
    path(f"{ONE}/revoke", api.RevokeView.as_view(), name="approval-revoke"),
    path(f"{ONE}/credential", api.CredentialView.as_view(), name="approval-credential"),
]
