package server

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

var claimLabels = []string{"namespace", "persistentvolumeclaim"}

var (
	volumeCapacity   = desc("kubelet_volume_stats_capacity_bytes", "Capacity of the volume in bytes.", claimLabels...)
	volumeAvailable  = desc("kubelet_volume_stats_available_bytes", "Bytes of the volume that are free.", claimLabels...)
	volumeUsed       = desc("kubelet_volume_stats_used_bytes", "Bytes of the volume that are used.", claimLabels...)
	volumeInodes     = desc("kubelet_volume_stats_inodes", "Inodes that the volume can have.", claimLabels...)
	volumeInodesFree = desc("kubelet_volume_stats_inodes_free", "Inodes of the volume that are free.", claimLabels...)
	volumeInodesUsed = desc("kubelet_volume_stats_inodes_used", "Inodes of the volume that are used.", claimLabels...)
)

// Describe is prometheus.Collector's: the volumes of claims belong to /metrics.
func (s *Stats) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{volumeCapacity, volumeAvailable, volumeUsed, volumeInodes, volumeInodesFree, volumeInodesUsed} {
		ch <- d
	}
}

// Collect gives each claim once, however many pods share it.
func (s *Stats) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	sum, err := s.Summary(ctx)
	if err != nil {
		return
	}
	told := map[string]bool{}
	for _, p := range sum.Pods {
		for _, v := range p.VolumeStats {
			if v.PVCRef == nil || told[v.PVCRef.Namespace+"/"+v.PVCRef.Name] {
				continue
			}
			told[v.PVCRef.Namespace+"/"+v.PVCRef.Name] = true
			for d, n := range map[*prometheus.Desc]*uint64{
				volumeCapacity: v.CapacityBytes, volumeAvailable: v.AvailableBytes, volumeUsed: v.UsedBytes,
				volumeInodes: v.Inodes, volumeInodesFree: v.InodesFree, volumeInodesUsed: v.InodesUsed,
			} {
				if n != nil {
					ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(*n), v.PVCRef.Namespace, v.PVCRef.Name)
				}
			}
		}
	}
}
