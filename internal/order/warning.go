package order

// Warnings: codes of what is worth telling the caller and stops nothing. Stable, part
// of the API.
const (
	warningDeprecated = "deprecated-member:" // and the member's name
	// warningWithoutDelivery: a THALES order that goes nowhere.
	warningWithoutDelivery = "shipment-without-delivery"
	// WarningNeverOrdered: a RENEWAL or REPLACEMENT of a card that was never ordered
	// here.
	WarningNeverOrdered = "card-never-ordered-here"
	// WarningCardDataNotCompared: a repeated request carries another JWE; the first
	// one stands.
	WarningCardDataNotCompared = "card-data-not-compared"
)
