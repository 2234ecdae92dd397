"""Paths of people and members, relative to the API prefix."""

from django.urls import path

from apps.access.api import me, members

urlpatterns = [
    path("me", me.MeView.as_view()),
    path("me/tokens", me.TokensView.as_view()),
    path("me/tokens/<uuid:token_id>", me.TokenView.as_view()),
    path("orgs/<uuid:org_id>/members", members.OrganizationMembersView.as_view()),
    path("orgs/<uuid:org_id>/members/<uuid:member_id>", members.OrganizationMemberView.as_view()),
    path("orgs/<uuid:org_id>/projects/<uuid:project_id>/members", members.ProjectMembersView.as_view()),
    path("orgs/<uuid:org_id>/projects/<uuid:project_id>/members/<uuid:member_id>", members.ProjectMemberView.as_view()),
]
