package plugins

import "github.com/keelson/keelson/scheduler/framework"

// PrioritySort says which of two pods is tried first: the one with the higher priority, else the one
// that has waited longer, by sequence in which they entered the queue.
func PrioritySort(a, b *framework.Pod, aEntered, bEntered uint64) bool {
	if a.Priority != b.Priority {
		return a.Priority > b.Priority
	}
	return aEntered < bEntered
}
