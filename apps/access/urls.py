"""Paths of people and members, relative to the API prefix."""

from django.urls import path

from apps.access.api import me, members
from apps.api.paths import ORGANIZATION, PROJECT

urlpatterns = [
    path("me", me.MeView.as_view(), name="me"),
    path("me/tokens", me.TokensView.as_view(), name="tokens"),
    path("me/tokens/<uuid:token_id>", me.TokenView.as_view(), name="token"),
    path(f"{ORGANIZATION}/members", members.OrganizationMembersView.as_view(), name="organization-members"),
    path(
        f"{ORGANIZATION}/members/<uuid:member_id>", members.OrganizationMemberView.as_view(), name="organization-member"
    ),
    path(f"{PROJECT}/members", members.ProjectMembersView.as_view(), name="project-members"),
    path(f"{PROJECT}/members/<uuid:member_id>", members.ProjectMemberView.as_view(), name="project-member"),
]
