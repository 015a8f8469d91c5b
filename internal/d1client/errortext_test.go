package d1client

import (
	"strings"
	"testing"
)

// D1's texts may quote what was sent; only what cannot be data is kept.
func TestSafeErrorText(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"": "",
		"field shipment.deliveryAddress.line1 is too long":         "field shipment.deliveryAddress.line1 is too long",
		"cardDesign.customLines[3]: invalid characters":            "cardDesign.customLines[3] invalid characters",
		"firstName 'Ada' is invalid":                               "firstName ... is invalid",
		"lastName: Müller-Lüdenscheidt has unsupported characters": "lastName ... has unsupported characters",
		"pan 4111 1111 1111 1111 failed":                           "pan ... failed",
		"1 Rue de la Paix, 75002 Paris":                            "...",
		"shipment.Ada.line1":                                       "...",
		"invalid value Max Long":                                   "invalid value ...",
		"<html>not found</html>":                                   "... not found ...",
	} {
		if got := safeErrorText(text); got != want {
			t.Errorf("%q became %q, want %q", text, got, want)
		}
	}
	if got := safeErrorText(strings.Repeat("invalid ", 100)); len(got) > maxErrorText {
		t.Errorf("%d characters", len(got))
	}
}
