// Package d1sim is a simulator of Thales D1 physical issuance, for development, tests and demonstrations. It makes no
// card and keeps everything in memory.
//
// It is a strict server of the bureau's contract, read independently: it imports no other package of this module, so
// that a mistake in our client can't hide in shared code. It also misbehaves on purpose: Settings say how it behaves
// all the time, Settings.Faults how often it misbehaves by chance, a Script how it answers one request. The management
// port changes both at run time, tells what was asked and what was made, and lets tests wait for it; Client is that
// port in Go.
//
// Where the documentation of D1 is silent, the simulator assumes:
//
//   - Every order of an issuer's issuerRequestId must name the same card: another card gets 409. What a true repeat
//     gets is Settings.Repeat. An order without issuerRequestId is never a repeat.
//   - consumerId and cardProductId are required, as the guide says (Settings.ConsumerAndProductOptional).
//   - Unknown members are refused at every level of an order, not only at the top.
//   - A missing, unknown or not allowed member is FIELD_INVALID_VALUE; a wrong type or pattern is FIELD_INVALID_FORMAT.
//     A request that is not a JSON object, or not sent as application/json, gets 400 without an error code.
//   - shipment is allowed, not required, for INSTANT and CENTRAL; persoStation is refused but for INSTANT.
//   - The members of paymentApplication are optional: whether D1 computes the EMV data is not known here.
//   - A card's expiry must be a YYMM date: its last two digits are 01 to 12.
//   - A change names its order by card and, if it likes, by issuerRequestId; without it the card's latest order is meant. An
//     unknown one gets 404. Whether it is still possible is judged by the step that the card has reached
//     (Settings.ChangeUntil), and a cancelled or otherwise ended order cannot be changed.
//   - What the carrier reports comes as further notifications of the card's operation, which stays SUCCESSFUL and
//     CARD_SHIPPED, as does the answer to productionStatus (Settings.CarrierStatuses).
//   - CARD_PROD_REQUESTED is reached at once, so its notification may overtake the 202.
//   - Requests are judged in this order: script, fault by chance, pause, wrong URL, path style, token, issuer, patterns,
//     body, card data, repeat.
package d1sim
