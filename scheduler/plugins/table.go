// Package plugins holds what the scheduler knows about placing pods, one file for each rule.
//
// The main value is [Table]: every plugin, in the order in which they are asked and with the weight of
// its score. A node's refusal is that of the first plugin that refuses, so the order is also the order
// of messages. Names, order, weights, messages and formulas are those of kube-scheduler v1.36, since
// users and their dashboards know them; where a rule is not the same, its file says so.
//
// Everything here is pure: see package framework for the phases and for what a plugin may read.
//
// To debug, run the scheduler's "plan" command on a file of objects: it prints the refusals. To add a
// plugin, write one file and one row.
package plugins

import "github.com/keelson/keelson/scheduler/framework"

// Table is all plugins in order.
var Table = []framework.Plugin{
	{Name: "SchedulingGates", Gate: gate, Events: framework.PodItself},
	{Name: "NodeUnschedulable", Local: nodeUnschedulable, Events: framework.NodeAdded | framework.NodeTaints | framework.PodItself},
	{Name: "NodeName", Local: nodeName, Events: framework.NodeAdded | framework.PodItself},
	{Name: "TaintToleration", Weight: 3, Local: taintToleration, Events: framework.NodeAdded | framework.NodeTaints | framework.PodItself, Wakes: taintsTolerated},
	{Name: "NodeAffinity", Weight: 2, Local: nodeAffinity, Events: framework.NodeAdded | framework.NodeLabels | framework.PodItself, Wakes: affinityMatches},
	{Name: "NodePorts", Local: nodePorts, Events: framework.NodeAdded | framework.PodGone | framework.PodItself, Wakes: portFreed},
	{Name: "NodeResourcesFit", Weight: 1, Local: nodeResourcesFit, Events: framework.NodeAdded | framework.NodeAllocatable | framework.PodGone | framework.PodChanged | framework.PodItself, Wakes: resourcesFreed},
	{Name: "NodeResourcesBalancedAllocation", Weight: 1, Local: balancedAllocation},
	{Name: "ImageLocality", Weight: 1, Local: imageLocality},
	{Name: "NodeDeclaredFeatures", Local: nodeDeclaredFeatures, Events: framework.NodeAdded | framework.NodeFeatures | framework.PodItself, Wakes: featuresDeclared},
	{Name: "VolumeRestrictions", Global: volumeRestrictions, Events: framework.PodGone | framework.StorageChanged},
	{Name: "VolumeBinding", Global: volumeBinding, Events: framework.AnyNode | framework.StorageChanged},
	{Name: "PodTopologySpread", Weight: 2, Global: podTopologySpread,
		Events: framework.NodeAdded | framework.NodeLabels | framework.NodeTaints | framework.PodPlaced | framework.PodChanged | framework.PodGone | framework.PodItself, Wakes: spreadMayChange},
	{Name: "InterPodAffinity", Weight: 2, Global: interPodAffinity,
		Events: framework.NodeAdded | framework.NodeLabels | framework.PodPlaced | framework.PodChanged | framework.PodGone | framework.NamespaceChanged | framework.PodItself, Wakes: affinityMayChange},
}

// final and open make the refusals that never change; they are shared.
func final(plugin, reason string) *framework.Refusal {
	return &framework.Refusal{Plugin: plugin, Reasons: []string{reason}, Final: true}
}

func open(plugin, reason string) *framework.Refusal {
	return &framework.Refusal{Plugin: plugin, Reasons: []string{reason}}
}
