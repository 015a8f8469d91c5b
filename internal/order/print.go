package order

import (
	"fmt"
	"log/slog"
)

// What holds personal or card data prints as its ids, or as nothing, whatever
// the verb and wherever it is nested.

// Format prints the order's ids only.
func (r Request) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "{card %q request %q}", r.CardID, r.Production.IssuerRequestID)
}

// LogValue logs what Format prints.
func (r Request) LogValue() slog.Value { return slog.StringValue(fmt.Sprint(r)) }

// Format prints the request's id only.
func (p Production) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "{request %q}", p.IssuerRequestID)
}

// LogValue logs what Format prints.
func (p Production) LogValue() slog.Value { return slog.StringValue(fmt.Sprint(p)) }

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
