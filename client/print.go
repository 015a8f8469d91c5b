package client

import (
	"fmt"
	"log/slog"
)

// What holds personal or card data prints as its ids, or as nothing, whatever
// the verb and wherever it is nested.

// Format prints the order's ids only.
func (o NewOrder) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "{card %q request %q}", o.CardID, o.IssuerRequestID)
}

// LogValue logs what Format prints.
func (o NewOrder) LogValue() slog.Value { return slog.StringValue(fmt.Sprint(o)) }

// Format prints nothing of an address.
func (Address) Format(f fmt.State, _ rune) { _, _ = fmt.Fprint(f, "{address}") }

// LogValue logs what Format prints.
func (a Address) LogValue() slog.Value { return slog.StringValue(fmt.Sprint(a)) }

// Format prints nothing of what is printed on a card.
func (CardDesign) Format(f fmt.State, _ rune) { _, _ = fmt.Fprint(f, "{card design}") }

// LogValue logs what Format prints.
func (d CardDesign) LogValue() slog.Value { return slog.StringValue(fmt.Sprint(d)) }

// Format prints nothing of what is printed on a letter.
func (CardCarrierConfig) Format(f fmt.State, _ rune) { _, _ = fmt.Fprint(f, "{card carrier}") }

// LogValue logs what Format prints.
func (c CardCarrierConfig) LogValue() slog.Value { return slog.StringValue(fmt.Sprint(c)) }

// Format prints nothing of card data.
func (SensitiveData) Format(f fmt.State, _ rune) { _, _ = fmt.Fprint(f, redacted) }

func (SensitiveData) LogValue() slog.Value         { return slog.StringValue(redacted) }
func (SensitiveData) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }

// Format prints nothing of card data.
func (TrackData) Format(f fmt.State, _ rune) { _, _ = fmt.Fprint(f, redacted) }

func (TrackData) LogValue() slog.Value         { return slog.StringValue(redacted) }
func (TrackData) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }

// Format leaves out the printed name.
func (d DryRun) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "{%s warnings %q}", d.Outcome, d.Warnings)
}

// LogValue logs what Format prints.
func (d DryRun) LogValue() slog.Value { return slog.StringValue(fmt.Sprint(d)) }
