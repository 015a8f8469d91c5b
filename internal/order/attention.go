package order

// Attention marks an order that a human has to look at.
type Attention string

const (
	AttentionSecondCard       Attention = "second-card"
	AttentionContradiction    Attention = "contradiction"
	AttentionAmbiguous        Attention = "ambiguous-operation"
	AttentionForeignOperation Attention = "foreign-operation"
	AttentionConflict         Attention = "conflict"
	AttentionOutcomeUnknown   Attention = "outcome-unknown"
	AttentionUnknownStatus    Attention = "unknown-status"
	AttentionGivenUp          Attention = "given-up"
	AttentionStopTooLate      Attention = "stop-too-late"
	AttentionRejected         Attention = "rejected"
	AttentionException        Attention = "exception"
	AttentionFailed           Attention = "failed"
	AttentionResending        Attention = "resending"
	AttentionUnreadable       Attention = "unreadable"
	AttentionUnapplied        Attention = "unapplied-notification"
	AttentionChangeUnanswered Attention = "change-unanswered"
	AttentionReturned         Attention = "returned"
	AttentionManyParcels      Attention = "many-parcels"
	AttentionNotShown         Attention = "not-shown"
	AttentionSilent           Attention = "silent"
)

// Advice is what a person is told about an attention.
type Advice struct {
	Detail string // one sentence: what is the matter
	Actor  string // who should act: support, operator, core-banking
	Next   string // the next step
}

// Advices holds the text of every attention, the gravest first. All texts for
// people stand here, ready for translation.
var advices = []struct {
	Attention
	Advice
}{
	{AttentionSecondCard, Advice{
		"D1 has a second production operation for this order: a second card may be in the post.",
		"support", "Ask D1 to stop the second operation and have the card that arrives twice destroyed."}},
	{AttentionContradiction, Advice{
		"D1 reported both an end of this order and progress beyond it.",
		"support", "Ask D1 which of the two is true."}},
	{AttentionAmbiguous, Advice{
		"D1 shows operations for this card that may or may not be this order's.",
		"operator", "Ask D1 which operation belongs to this issuerRequestId; nothing is sent again until then."}},
	{AttentionForeignOperation, Advice{
		"D1 answered with an operation that belongs to another order.",
		"operator", "Ask D1 what became of this issuerRequestId."}},
	{AttentionConflict, Advice{
		"D1 answered 409 and shows no operation for this order; it is not sent again.",
		"operator", "Ask D1 what the conflict is; when it does not have the order, retry it."}},
	{AttentionOutcomeUnknown, Advice{
		"It is still unknown whether D1 took this order.",
		"operator", "Check that D1 answers status requests; the order is asked about for as long as it takes."}},
	{AttentionResending, Advice{
		"The order was sent several times, and each time D1 gave no answer and does not show it.",
		"operator", "Ask D1 why it does not answer this order; it is sent again and again until then."}},
	{AttentionGivenUp, Advice{
		"This order was tried for too long and is not tried any more.",
		"operator", "Remove the reason that its last attempt names, then retry the order."}},
	{AttentionStopTooLate, Advice{
		"A hold or a cancel of this order came when D1 had it already: the card is being made.",
		"support", "Ask D1 to stop the order, or let the card come."}},
	{AttentionChangeUnanswered, Advice{
		"D1 took a change of this order and never said whether it was made.",
		"support", "Ask D1 what became of the change; until then the card may come as it was ordered."}},
	{AttentionUnreadable, Advice{
		"The sealed content of this order cannot be opened, so it cannot be sent.",
		"operator", "Check the sealing keys in the configuration."}},
	{AttentionUnapplied, Advice{
		"A notification from D1 for this order is stored but could not be applied.",
		"operator", "Look for the error in the log; the order's status may be behind D1's."}},
	{AttentionNotShown, Advice{
		"D1 took this order and does not show it any more.",
		"support", "Ask D1 what became of the order; when it is lost, order the card again."}},
	{AttentionUnknownStatus, Advice{
		"D1 reported a status that this service does not know.",
		"operator", "Ask D1 what the status means."}},
	{AttentionFailed, Advice{
		"D1 could not make this card.",
		"support", "Order the card again after the cause is removed."}},
	{AttentionReturned, Advice{
		"The card was not delivered: it is on its way back, or back.",
		"support", "Check the address with the cardholder, then order the card again; when it is sent again, the new parcel ends this."}},
	{AttentionManyParcels, Advice{
		"D1 reported more tracking numbers than one card can have; not all of them count.",
		"support", "Ask D1 which parcel has the card."}},
	{AttentionRejected, Advice{
		"D1 refused this order.",
		"core-banking", "Remove the cause that the attempt's error code names and retry the order; when its content must change, order again with a duplicateOverride."}},
	{AttentionException, Advice{
		"D1 has trouble making this card.",
		"support", "Wait for D1, or ask it for the reason."}},
	{AttentionSilent, Advice{
		"D1 was asked about this order several times and has had nothing new to say for too long.",
		"support", "Ask D1 when the card will be made; the order is asked about ever more rarely."}},
}

// Attentions returns every Attention there is, the gravest first.
func Attentions() []Attention {
	all := make([]Attention, len(advices))
	for i, row := range advices {
		all[i] = row.Attention
	}
	return all
}

// Advice returns what to tell a person about a.
func (a Attention) Advice() Advice {
	for _, row := range advices {
		if row.Attention == a {
			return row.Advice
		}
	}
	return Advice{}
}

// gravity orders attentions: the lower, the graver.
func (a Attention) gravity() int {
	for i, row := range advices {
		if row.Attention == a {
			return i
		}
	}
	return len(advices)
}

// attentionOf is the attention that comes and goes with a status.
var attentionOf = map[Status]Attention{
	Rejected:  AttentionRejected,
	Exception: AttentionException,
	Failed:    AttentionFailed,
	Returned:  AttentionReturned,
}
