"""Forms of sign-in and passwords. The services decide."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib.admin.forms import AdminPasswordChangeForm
from django.contrib.auth.forms import AuthenticationForm
from django.core.exceptions import ValidationError
from django.core.validators import MaxLengthValidator
from django.utils.html import format_html

from apps.access.models import MOST_ADDRESS_CHARACTERS, User, account_name
from apps.access.pages.browsers import sign_in_origin
from apps.access.services.accounts import change_password, hash_password
from apps.access.services.sign_in import SignInOrigin, WrongCredentials, verify_password
from apps.core.errors import ServiceError, TooManyRequests, Unavailable


class SignInForm(AuthenticationForm):
    """Django's sign-in form on the sign-in service. `refusal` is set if attempts are limited (429) or can't be counted
    (503)."""

    refusal: ServiceError | None = None

    def clean(self) -> dict[str, Any]:
        account, password = self.cleaned_data.get("username"), self.cleaned_data.get("password")
        if not account or not password:
            return self.cleaned_data
        assert self.request is not None
        try:
            self.user_cache = verify_password(account=account, password=password, origin=sign_in_origin(self.request))
        except WrongCredentials:
            raise self.get_invalid_login_error() from None
        except (TooManyRequests, Unavailable) as error:
            self.refusal = error
            raise ValidationError(error.detail, code=error.code) from None
        return self.cleaned_data


class ChangePasswordForm(AdminPasswordChangeForm):
    """Django's password change form on the services. A wrong current password is counted and recorded."""

    refusal: ServiceError | None = None
    origin: SignInOrigin
    user: User

    def __init__(self, *args: Any, origin: SignInOrigin, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.origin = origin
        field = self.fields["new_password1"]
        note = "Changing it signs out every other browser. Personal tokens stay valid: end any that you don't trust."
        field.help_text = format_html("{}<p>{}</p>", field.help_text, note)

    def clean_old_password(self) -> str:
        given = str(self.cleaned_data["old_password"])
        try:
            verify_password(
                account=self.user.email,
                password=given,
                origin=self.origin,
                refused_action="password.change_refused",
            )
        except WrongCredentials:
            raise ValidationError(self.error_messages["password_incorrect"], code="password_incorrect") from None
        except (TooManyRequests, Unavailable) as error:
            self.refusal = error
            raise ValidationError(error.detail, code=error.code) from None
        return given

    def save(self, commit: bool = True) -> User:
        encoded = hash_password(self.cleaned_data["new_password1"])
        self.user.password = change_password(user=self.user, encoded=encoded).password
        return self.user


class SetPasswordForm(forms.Form):
    """A new password, entered once; a password manager or the browser shows it."""

    password = forms.CharField(
        max_length=1024, strip=False, widget=forms.PasswordInput(attrs={"autocomplete": "new-password"})
    )


class AcceptForm(SetPasswordForm):
    """Input of a new user who accepts an invitation."""

    name = forms.CharField(max_length=200, required=False, widget=forms.TextInput(attrs={"autocomplete": "name"}))
    field_order = ("name", "password")


class AddressForm(forms.Form):
    """An e-mail address."""

    email = forms.EmailField(
        max_length=MOST_ADDRESS_CHARACTERS,
        label="E-mail address",
        widget=forms.EmailInput(attrs={"autocomplete": "username"}),
    )

    def clean_email(self) -> str:
        """Normalize the address. Normalization can lengthen it, so its length is checked again."""
        name = account_name(self.cleaned_data["email"])
        MaxLengthValidator(MOST_ADDRESS_CHARACTERS)(name)
        return name
